//! Every setting of every program, read once at start and typed.
//!
//! Nothing below `main` reads the environment. A missing or malformed value is reported together with all the
//! others, each with the variable's name and what it needs. Secrets are [`SecretString`]: they cannot be printed.

mod authority;
mod production;
mod reader;
mod servers;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use secrecy::SecretString;
use url::Url;

pub use self::authority::Authority;
use self::reader::{Reader, is_header_name, is_log_filter, is_x264_preset};
use crate::{http::client_address::Network, jobs::LEASE};

/// Looks a variable up: the environment in programs, a closure in tests.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

#[derive(Debug, Clone)]
pub struct Config {
    pub environment: Environment,
    pub log_level: String,
    pub api: ApiConfig,
    pub database: DatabaseConfig,
    pub redis: RedisConfig,
    pub worker: WorkerConfig,
    /// Base64 keys for encryption at rest: the first encrypts, all decrypt.
    pub encryption_keys: Vec<SecretString>,
    /// `None`: local tokens are off.
    pub jwt: Option<JwtConfig>,
    /// A secret for local tokens is set, and nothing is made of it.
    pub jwt_ignored: bool,
    /// `None`: nobody signs in with Firebase.
    pub firebase: Option<FirebaseConfig>,
    pub ai: AiConfig,
    pub x: XConfig,
    /// `None`: memberships on Patreon give no plans.
    pub patreon: Option<PatreonConfig>,
    pub storage: StorageConfig,
    pub media: MediaConfig,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Environment {
    Development,
    Staging,
    Production,
}

#[derive(Debug, Clone)]
pub struct ApiConfig {
    pub host: IpAddr,
    pub port: u16,
    pub allowed_origins: Vec<String>,
    /// How many proxies of ours a request passes before it gets here; 0: whoever connects is the client.
    pub trusted_proxies: u8,
    /// Where the last of them connects from; none named: from this machine or a private network.
    pub proxy_networks: Vec<Network>,
    /// Where each of them adds whom it heard the request from.
    pub proxy_header: String,
    pub rate_limit_requests: u32,
    /// Of all callers at one address together.
    pub rate_limit_address_requests: u32,
    pub rate_limit_window: Duration,
    /// What `/metrics` is asked with; `None`: anybody may read it.
    pub metrics_token: Option<SecretString>,
}

#[derive(Debug, Clone)]
pub struct DatabaseConfig {
    pub url: SecretString,
    /// Who has signed the server's certificate; `None`: the address has the only word on TLS.
    pub authority: Option<Authority>,
    /// Connections kept, plus those opened under load.
    pub max_connections: u32,
    pub acquire_timeout: Duration,
}

#[derive(Debug, Clone)]
pub struct RedisConfig {
    pub url: SecretString,
    /// Who has signed the server's certificate; `None`: a public authority, where the address says `rediss://`.
    pub authority: Option<Authority>,
}

#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// Jobs run at once by one process; each queue has its own default.
    pub concurrency: Option<usize>,
    /// How long a stopping worker lets its jobs finish before it hands them back.
    pub grace: Duration,
    /// Where a worker shows its figures at `/metrics`; nowhere unless set.
    pub metrics_listen: Option<SocketAddr>,
}

#[derive(Debug, Clone)]
pub struct JwtConfig {
    pub secret: SecretString,
    pub access_token_lifetime: Duration,
}

#[derive(Debug, Clone)]
pub struct FirebaseConfig {
    pub project: String,
    /// The Identity Platform tenant whose users may come in; `None`: those of the project itself.
    pub tenant: Option<String>,
    /// Where the keys are published as a JWK set.
    pub keys_url: Url,
    /// How long ago somebody may have signed in who deletes or makes an API key.
    pub recent_sign_in: Duration,
}

#[derive(Debug, Clone)]
pub struct AiConfig {
    /// In the order they are asked; a provider without a key is off.
    pub grok: Option<AiProviderConfig>,
    pub together: Option<AiProviderConfig>,
    pub openai: Option<AiProviderConfig>,
    pub max_tokens: u32,
    pub request_timeout: Duration,
    pub max_retries: u32,
}

impl AiConfig {
    /// Whether any language model can be asked.
    pub fn is_on(&self) -> bool {
        self.grok.is_some() || self.together.is_some() || self.openai.is_some()
    }
}

#[derive(Debug, Clone)]
pub struct AiProviderConfig {
    pub api_key: SecretString,
    pub base_url: Url,
    pub model: String,
}

#[derive(Debug, Clone)]
pub struct XConfig {
    pub api_base: Url,
    pub client_id: Option<String>,
    pub client_secret: Option<SecretString>,
    /// X's page where an account's owner allows us to act for them.
    pub authorize_page: Url,
    /// Where X sends them back to, exactly as the app has it there; `None`: accounts come with their tokens only.
    pub callback: Option<String>,
    /// The longest a request that creates a post may take.
    pub create_deadline: Duration,
    /// How long after a post was accepted it may still be missing from its author's list.
    pub visibility: Duration,
    /// How long a worker may be stopped in the middle of such a request and go on afterwards.
    pub stall: Duration,
}

#[derive(Debug, Clone)]
pub struct PatreonConfig {
    pub base_url: Url,
    pub client_id: String,
    pub client_secret: SecretString,
    /// Where Patreon sends users back to, letter by letter as it is registered there.
    pub redirect_uri: String,
    /// `None`: no hints are taken in, and memberships are looked at now and then alone.
    pub webhook_secret: Option<SecretString>,
    /// How long a plan holds after the last look that found the membership.
    pub grace: Duration,
}

#[derive(Debug, Clone)]
pub struct StorageConfig {
    /// Where media is kept until an object store is configured.
    pub folder: PathBuf,
}

#[derive(Debug, Clone)]
pub struct MediaConfig {
    pub ffmpeg: PathBuf,
    pub ffprobe: PathBuf,
    /// Where a running transcode keeps its files.
    pub scratch: PathBuf,
    pub max_upload_bytes: u64,
    /// For development: files may also be imported from this port of this machine.
    pub import_loopback_port: Option<u16>,
    /// How hard x264 works: "medium" where there is time, "veryfast" under load.
    pub x264_preset: String,
    /// Threads of one ffmpeg; `None`: as many as there are processors.
    pub threads: Option<usize>,
}

/// Everything that is wrong with the settings, at once.
#[derive(Debug)]
pub struct ConfigError(pub Vec<String>);

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} problem(s) with the configuration:", self.0.len())?;
        for problem in &self.0 {
            write!(f, "\n  - {problem}")?;
        }
        Ok(())
    }
}

const NO_SETTING: &str =
    ".env has a line that is not NAME=value. Put a value with spaces, quotes or # in it into quotes.";

/// What is wrong with an `.env`. Its own text of a line that cannot be read is that line, with the secret in it.
fn unreadable(error: &dotenvy::Error) -> String {
    match error {
        dotenvy::Error::LineParse(..) => NO_SETTING.to_owned(),
        error => format!(".env could not be read: {error}"),
    }
}

impl Config {
    /// Reads the process's environment, after an `.env` file where there is one.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::from_env_with(&[])
    }

    /// [`Self::from_env`] for programs that bring servers of their own: what is given wins.
    pub fn from_env_with(given: &[(String, String)]) -> Result<Self, ConfigError> {
        // A missing file is the ordinary case in production; a malformed one must not pass silently.
        if let Err(error) = dotenvy::dotenv()
            && !error.not_found()
        {
            return Err(ConfigError(vec![unreadable(&error)]));
        }
        let given = |name: &str| given.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        #[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
        Self::load(&|name| given(name).or_else(|| std::env::var(name).ok()))
    }

    /// Whether the environment, or an `.env` file, has a say in it.
    pub fn is_set(name: &str) -> bool {
        // One that cannot be read is told of when the settings are.
        let _read = dotenvy::dotenv();
        #[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
        std::env::var(name).is_ok_and(|value| !value.trim().is_empty())
    }

    pub fn load(lookup: Lookup<'_>) -> Result<Self, ConfigError> {
        let mut read = Reader { lookup, problems: Vec::new() };
        // What is misspelt may have been meant for production: the list is complete then.
        let unsaid =
            if read.text("ENVIRONMENT").is_some() { Environment::Production } else { Environment::Development };
        let environment = read.parse("ENVIRONMENT", "development, staging or production", unsaid);
        let jwt = read.jwt();
        // Whoever holds the secret can be anybody: in production that has to be wanted.
        let local_tokens = read.on_or_off("LOCAL_TOKENS", environment != Environment::Production);
        let config = Self {
            environment,
            log_level: read
                .optional("LOG_LEVEL", "a level, or levels by part such as info,multivio::jobs=debug", is_log_filter)
                .unwrap_or_else(|| "info".into()),
            api: ApiConfig {
                host: read.parse("HOST", "an IP address to listen on, such as 0.0.0.0", IpAddr::from([127, 0, 0, 1])),
                port: read.parse("PORT", "a port number", 8080),
                allowed_origins: read.origins("ALLOWED_ORIGINS"),
                trusted_proxies: read.number("TRUSTED_PROXIES", 0..=16, 0),
                proxy_networks: read.networks("TRUSTED_PROXY_NETWORKS"),
                proxy_header: read
                    .optional("TRUSTED_PROXY_HEADER", "the name of a header", is_header_name)
                    .unwrap_or_else(|| "X-Forwarded-For".into()),
                rate_limit_requests: read.number("RATE_LIMIT_REQUESTS", 1..=u32::MAX, 600),
                rate_limit_address_requests: read.number("RATE_LIMIT_ADDRESS_REQUESTS", 1..=u32::MAX, 6000),
                rate_limit_window: read.seconds("RATE_LIMIT_WINDOW", 1, 60),
                metrics_token: read.secret("METRICS_TOKEN"),
            },
            database: read.database(),
            redis: read.redis(),
            worker: WorkerConfig {
                concurrency: read.optional("WORKER_CONCURRENCY", "a whole number, 1 or more", |n: &usize| *n > 0),
                grace: read.seconds("WORKER_GRACE_SECONDS", 0, 25),
                metrics_listen: read.optional("WORKER_METRICS_LISTEN", "an address and a port: 0.0.0.0:9090", |_| true),
            },
            encryption_keys: read
                .list("ENCRYPTION_KEY")
                .into_iter()
                .chain(read.list("ENCRYPTION_KEYS_OLD"))
                .map(SecretString::from)
                .collect(),
            jwt_ignored: jwt.is_some() && !local_tokens,
            jwt: jwt.filter(|_| local_tokens),
            firebase: read.firebase(),
            ai: AiConfig {
                grok: read.ai_provider("GROK", "https://api.x.ai/v1", "grok-4.3"),
                together: read.ai_provider("TOGETHER", "https://api.together.ai/v1", "openai/gpt-oss-120b"),
                openai: read.ai_provider("OPENAI", "https://api.openai.com/v1", "gpt-6-luna"),
                max_tokens: read.number("AI_MAX_TOKENS", 1..=1_000_000, 2048),
                request_timeout: read.seconds("AI_REQUEST_TIMEOUT", 1, 30),
                max_retries: read.number("AI_MAX_RETRIES", 0..=100, 2),
            },
            x: XConfig {
                api_base: read.url("TWITTER_API_BASE_URL", "https://api.x.com"),
                client_id: read.text("TWITTER_CLIENT_ID").or_else(|| read.text("TWITTER_API_KEY")),
                client_secret: read.secret("TWITTER_CLIENT_SECRET").or_else(|| read.secret("TWITTER_API_SECRET")),
                authorize_page: read.url("TWITTER_AUTHORIZE_URL", "https://x.com/i/oauth2/authorize"),
                callback: read.callback("TWITTER_CALLBACK_URL"),
                create_deadline: read.seconds("TWITTER_CREATE_DEADLINE_SECONDS", 1, 20),
                visibility: read.seconds("TWITTER_VISIBILITY_SECONDS", 0, 60),
                stall: read.seconds("TWITTER_STALL_SECONDS", 0, LEASE.as_secs()),
            },
            patreon: read.patreon(),
            storage: StorageConfig { folder: read.path("STORAGE_FOLDER", ".multivio/media") },
            media: MediaConfig {
                ffmpeg: read.path("FFMPEG", "ffmpeg"),
                ffprobe: read.path("FFPROBE", "ffprobe"),
                scratch: read.path("MEDIA_SCRATCH_FOLDER", ".multivio/scratch"),
                max_upload_bytes: read.number("MEDIA_MAX_UPLOAD_BYTES", 1..=1 << 50, 8 << 30),
                import_loopback_port: read.optional("MEDIA_IMPORT_LOOPBACK_PORT", "a port number", |port| *port > 0),
                x264_preset: read
                    .optional("MEDIA_X264_PRESET", "an x264 preset, from ultrafast to veryslow", is_x264_preset)
                    .unwrap_or_else(|| "medium".to_owned()),
                threads: read.optional("MEDIA_THREADS", "a whole number, 1 or more", |n: &usize| *n > 0),
            },
        };
        let mut problems = read.problems;
        if config.environment == Environment::Production {
            problems.extend(production::unfit(&config));
        }
        if problems.is_empty() { Ok(config) } else { Err(ConfigError(problems)) }
    }
}

impl FromStr for Environment {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "development" => Ok(Self::Development),
            "staging" => Ok(Self::Staging),
            "production" => Ok(Self::Production),
            _ => Err(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::load(&|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    const SERVERS: [(&str, &str); 2] =
        [("DATABASE_URL", "postgres://u:hunter2@localhost/m"), ("REDIS_URL", "redis://localhost")];

    #[test]
    fn all_problems_are_reported_together_and_name_their_variable() {
        let error = load(&[("DB_POOL_SIZE", "many"), ("PORT", "99999")]).unwrap_err().to_string();
        for name in ["DATABASE_URL", "REDIS_URL", "DB_POOL_SIZE", "PORT"] {
            assert!(error.contains(name), "{name} is missing from: {error}");
        }
        assert!(error.starts_with("4 problem(s)"));
    }

    #[test]
    fn a_file_of_settings_that_cannot_be_read_is_refused_without_its_text() {
        let lines = b"PORT=8080\nDATABASE_URL=postgres://u:hunter2 words@localhost/m\n";
        let error = dotenvy::from_read_iter(&lines[..]).find_map(Result::err).expect("a space stands outside quotes");
        let problem = unreadable(&error);
        assert!(problem.contains(".env") && problem.contains("quotes") && !problem.contains("hunter2"), "{problem}");
    }

    #[test]
    fn an_error_never_repeats_an_address_with_its_password() {
        let error = load(&[("DATABASE_URL", "mysql://u:hunter2@h/n"), SERVERS[1]]).unwrap_err();
        assert!(!error.to_string().contains("hunter2"));
        assert!(!format!("{:?}", load(&SERVERS).unwrap()).contains("hunter2"));
    }

    #[test]
    fn what_could_not_work_or_would_overflow_is_refused_and_not_bent() {
        let most = u64::MAX.to_string();
        for (name, value) in [
            ("LOG_LEVEL", "inof"),
            ("LOG_LEVEL", "multivio=loud"),
            ("AI_REQUEST_TIMEOUT", "0"),
            ("AI_MAX_TOKENS", "0"),
            ("DB_POOL_TIMEOUT", "0"),
            ("DB_POOL_SIZE", "4294967295"),
            ("DB_MAX_OVERFLOW", "4294967295"),
            ("RATE_LIMIT_WINDOW", "0"),
            ("RATE_LIMIT_REQUESTS", "0"),
            ("RATE_LIMIT_ADDRESS_REQUESTS", "0"),
            ("TRUSTED_PROXIES", "everybody"),
            ("TRUSTED_PROXY_HEADER", "x forwarded for"),
            ("TRUSTED_PROXY_NETWORKS", "10.0.0.0/8, everybody"),
            ("TRUSTED_PROXY_NETWORKS", "10.0.0.1/8"),
            ("ALLOWED_ORIGINS", "https://app.example/"),
            ("ALLOWED_ORIGINS", "https://App.example"),
            ("ALLOWED_ORIGINS", "https://app.example:443"),
            ("ALLOWED_ORIGINS", "https://*.example"),
            ("ALLOWED_ORIGINS", "app.example"),
            ("ALLOWED_ORIGINS", "null"),
            ("MEDIA_MAX_UPLOAD_BYTES", "0"),
            ("TWITTER_CALLBACK_URL", "http://app.example/connected"),
            ("TWITTER_CALLBACK_URL", "https://app.example/#connected"),
            ("TWITTER_CALLBACK_URL", "/connected"),
            ("TWITTER_CALLBACK_URL", "https://:secret@app.example/connected"),
            ("JWT_ACCESS_TOKEN_EXPIRE_MINUTES", &most),
            ("WORKER_GRACE_SECONDS", &most),
        ] {
            let set = [SERVERS[0], SERVERS[1], ("JWT_SECRET_KEY", "s"), (name, value)];
            let error = load(&set).expect_err(name).to_string();
            assert!(error.starts_with("1 problem(s)") && error.contains(name), "{name}={value}: {error}");
        }
        for level in ["info", "WARN", "info,multivio::jobs=debug", "off"] {
            load(&[SERVERS[0], SERVERS[1], ("LOG_LEVEL", level)]).unwrap();
        }
    }

    #[test]
    fn local_tokens_are_off_in_production_unless_they_are_asked_for() {
        let jwt = |more: &[(&str, &str)]| {
            let secrets = [
                ("JWT_SECRET_KEY", "nXk2o9Vb4s7QhT0yJ3mLcR8wE5zAu1Gf6Dp+Ki/SxHq"),
                ("ENCRYPTION_KEY", "4f3VvPAy9sZcE1qUO1m5dYxk2H0bWJtq8R7nLhGc6Xo="),
            ];
            let config = load(&[&SERVERS[..], &secrets, more].concat()).unwrap();
            assert_ne!(config.jwt.is_some(), config.jwt_ignored);
            config.jwt.is_some()
        };
        assert!(jwt(&[]) && jwt(&[("ENVIRONMENT", "staging")]));
        assert!(!jwt(&[("ENVIRONMENT", "production")]));
        assert!(jwt(&[("ENVIRONMENT", "production"), ("LOCAL_TOKENS", "on")]));
        assert!(!jwt(&[("LOCAL_TOKENS", "off")]));
        assert!(load(&[SERVERS[0], SERVERS[1], ("LOCAL_TOKENS", "perhaps")]).is_err());
    }

    #[test]
    fn an_empty_variable_counts_as_not_set() {
        let config = load(&[SERVERS[0], SERVERS[1], ("GROK_API_KEY", " "), ("PORT", "")]).unwrap();
        assert!(config.ai.grok.is_none());
        assert_eq!(config.api.port, 8080);
    }
}
