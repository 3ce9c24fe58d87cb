//! Every setting of every program, read once at start and typed.
//!
//! Nothing below `main` reads the environment. A missing or malformed value is reported together with all the
//! others, each with the variable's name and what it needs. Secrets are [`SecretString`]: they cannot be printed.

mod production;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use secrecy::SecretString;
use tracing_subscriber::{EnvFilter, filter::LevelFilter};
use url::Url;

use crate::jobs::LEASE;

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
    /// Where each of them adds whom it heard the request from.
    pub proxy_header: String,
    pub rate_limit_requests: u32,
    /// Of all callers at one address together.
    pub rate_limit_address_requests: u32,
    pub rate_limit_window: Duration,
}

#[derive(Debug, Clone)]
pub struct DatabaseConfig {
    pub url: SecretString,
    /// Connections kept, plus those opened under load.
    pub max_connections: u32,
    pub acquire_timeout: Duration,
}

#[derive(Debug, Clone)]
pub struct RedisConfig {
    pub url: SecretString,
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
    pub callback: Option<Url>,
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
            return Err(ConfigError(vec![format!(".env could not be read: {error}")]));
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
        let environment = read.parse("ENVIRONMENT", "development, staging or production", Environment::Development);
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
                proxy_header: read
                    .optional("TRUSTED_PROXY_HEADER", "the name of a header", is_header_name)
                    .unwrap_or_else(|| "X-Forwarded-For".into()),
                rate_limit_requests: read.number("RATE_LIMIT_REQUESTS", 1..=u32::MAX, 600),
                rate_limit_address_requests: read.number("RATE_LIMIT_ADDRESS_REQUESTS", 1..=u32::MAX, 6000),
                rate_limit_window: read.seconds("RATE_LIMIT_WINDOW", 1, 60),
            },
            database: DatabaseConfig {
                url: read.required_secret(
                    &["DATABASE_URL", "SUPABASE_DB_URL"],
                    "postgres://user:password@host/name",
                    &["postgres://", "postgresql://"],
                ),
                max_connections: read.number("DB_POOL_SIZE", 1..=MOST_CONNECTIONS, 10)
                    + read.number("DB_MAX_OVERFLOW", 0..=MOST_CONNECTIONS, 0),
                acquire_timeout: read.seconds("DB_POOL_TIMEOUT", 1, 5),
            },
            redis: RedisConfig {
                url: read.required_secret(&["REDIS_URL"], "redis://host:6379", &["redis://", "rediss://"]),
            },
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
                callback: read.optional("TWITTER_CALLBACK_URL", CALLBACK_NEEDS, is_callback),
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

const A_YEAR_SECONDS: u64 = 366 * 24 * 3600;
/// More than any Postgres is set up for.
const MOST_CONNECTIONS: u32 = 10_000;

/// A word alone has to be a level: the library would take a misspelt one for the name of a part.
fn is_log_filter(text: &String) -> bool {
    let is_meant = |part: &str| part.contains('=') || part.contains('[') || part.trim().parse::<LevelFilter>().is_ok();
    EnvFilter::try_new(text).is_ok() && text.split(',').all(is_meant)
}

#[expect(clippy::ptr_arg, reason = "the reader gives what it has parsed")]
fn is_header_name(name: &String) -> bool {
    poem::http::HeaderName::try_from(name.as_str()).is_ok()
}

/// As a browser sends it: compared letter by letter, so that one written otherwise would never be allowed.
fn is_origin(text: &str) -> bool {
    let is_exact = |url: Url| url.origin().is_tuple() && url.origin().ascii_serialization() == text;
    text == "*" || (!text.contains('*') && Url::parse(text).is_ok_and(is_exact))
}

const CALLBACK_NEEDS: &str = "the https address of a page, without # (on this machine http://127.0.0.1 will do)";

/// A page of the frontend: what comes back there is worth a connection.
fn is_callback(url: &Url) -> bool {
    let here = url.scheme() == "http" && url.host_str() == Some("127.0.0.1");
    (url.scheme() == "https" || here) && url.fragment().is_none() && url.username().is_empty()
}

fn is_redirect(text: &str) -> bool {
    let is_plain = |url: Url| {
        matches!(url.scheme(), "http" | "https")
            && url.username().is_empty()
            && url.password().is_none()
            && url.fragment().is_none()
    };
    Url::parse(text).is_ok_and(is_plain)
}

#[expect(clippy::ptr_arg, reason = "the reader gives what it has parsed")]
fn is_x264_preset(name: &String) -> bool {
    const PRESETS: [&str; 9] =
        ["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"];
    PRESETS.contains(&name.as_str())
}

struct Reader<'a> {
    lookup: Lookup<'a>,
    problems: Vec<String>,
}

impl Reader<'_> {
    /// A variable set to nothing counts as not set: that is how Compose and App Platform pass absent ones.
    fn text(&self, name: &str) -> Option<String> {
        (self.lookup)(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    fn secret(&self, name: &str) -> Option<SecretString> {
        self.text(name).map(SecretString::from)
    }

    fn list(&self, name: &str) -> Vec<String> {
        let text = self.text(name).unwrap_or_default();
        text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
    }

    fn origins(&mut self, name: &str) -> Vec<String> {
        let origins = self.list(name);
        for origin in origins.iter().filter(|origin| !is_origin(origin)) {
            let needs = "scheme://host, with a port unless it is the usual one, in small letters and nothing behind it";
            self.problems.push(format!("{name} is not valid: {origin:?} is no origin; it needs {needs}"));
        }
        origins
    }

    fn path(&self, name: &str, default: &str) -> PathBuf {
        self.text(name).unwrap_or_else(|| default.to_owned()).into()
    }

    fn optional<T: FromStr>(&mut self, name: &str, needs: &str, valid: impl Fn(&T) -> bool) -> Option<T> {
        let text = self.text(name)?;
        let value = text.parse().ok().filter(valid);
        if value.is_none() {
            self.problems.push(format!("{name} is not valid: it needs {needs}"));
        }
        value
    }

    fn parse<T: FromStr>(&mut self, name: &str, needs: &str, default: T) -> T {
        self.optional(name, needs, |_| true).unwrap_or(default)
    }

    fn number<T: FromStr + PartialOrd + fmt::Display>(
        &mut self,
        name: &str,
        allowed: RangeInclusive<T>,
        default: T,
    ) -> T {
        let needs = format!("a whole number from {} to {}", allowed.start(), allowed.end());
        self.optional(name, &needs, |number: &T| allowed.contains(number)).unwrap_or(default)
    }

    /// Bounded, because a time that cannot be added to the present one would end the program that tries.
    fn seconds(&mut self, name: &str, least: u64, default: u64) -> Duration {
        Duration::from_secs(self.number(name, least..=A_YEAR_SECONDS, default))
    }

    fn url(&mut self, name: &str, default: &str) -> Url {
        let default = Url::parse(default).expect("defaults are valid addresses");
        self.optional(name, "an http or https address", |url: &Url| matches!(url.scheme(), "http" | "https"))
            .unwrap_or(default)
    }

    /// Never repeats the value: an address of a server carries its password.
    fn required_secret(&mut self, names: &[&str], example: &str, schemes: &[&str]) -> SecretString {
        let Some(value) = names.iter().find_map(|name| self.text(name)) else {
            self.problems.push(format!("{} is not set ({example})", names[0]));
            return SecretString::default();
        };
        if !schemes.iter().any(|scheme| value.starts_with(scheme)) {
            self.problems.push(format!("{} is not valid: it needs the form {example}", names[0]));
        }
        value.into()
    }

    fn on_or_off(&mut self, name: &str, default: bool) -> bool {
        let word = self.optional(name, "on or off", |word: &String| matches!(word.as_str(), "on" | "off"));
        word.map_or(default, |word| word == "on")
    }

    fn jwt(&mut self) -> Option<JwtConfig> {
        let minutes = self.number("JWT_ACCESS_TOKEN_EXPIRE_MINUTES", 1..=A_YEAR_SECONDS / 60, 60);
        let access_token_lifetime = Duration::from_secs(60 * minutes);
        self.secret("JWT_SECRET_KEY").map(|secret| JwtConfig { secret, access_token_lifetime })
    }

    fn firebase(&mut self) -> Option<FirebaseConfig> {
        let keys_url = self.url(
            "FIREBASE_KEYS_URL",
            "https://www.googleapis.com/service_accounts/v1/jwk/securetoken@system.gserviceaccount.com",
        );
        let project = self.text("FIREBASE_PROJECT_ID")?;
        Some(FirebaseConfig { project, tenant: self.text("FIREBASE_TENANT_ID"), keys_url })
    }

    fn patreon(&mut self) -> Option<PatreonConfig> {
        let base_url = self.url("PATREON_BASE_URL", "https://www.patreon.com");
        let grace = Duration::from_secs(24 * 3600 * self.number("PATREON_GRACE_DAYS", 1..=366, 7));
        let client_id = self.text("PATREON_CLIENT_ID")?;
        let needed = ["PATREON_CLIENT_SECRET", "PATREON_REDIRECT_URI"].map(|name| {
            let value = self.text(name);
            if value.is_none() {
                self.problems.push(format!("{name} is not set, and PATREON_CLIENT_ID needs it"));
            }
            value.unwrap_or_default()
        });
        let [client_secret, redirect_uri] = needed;
        if !redirect_uri.is_empty() && !is_redirect(&redirect_uri) {
            let needs = "an http or https address, without user and fragment";
            self.problems.push(format!("PATREON_REDIRECT_URI is not valid: it needs {needs}"));
        }
        let webhook_secret = self.secret("PATREON_WEBHOOK_SECRET");
        Some(PatreonConfig {
            base_url,
            client_id,
            client_secret: client_secret.into(),
            redirect_uri,
            webhook_secret,
            grace,
        })
    }

    fn ai_provider(&mut self, name: &str, base_url: &str, model: &str) -> Option<AiProviderConfig> {
        let base_url = self.url(&format!("{name}_BASE_URL"), base_url);
        let model = self.text(&format!("{name}_MODEL")).unwrap_or_else(|| model.to_owned());
        let api_key = self.secret(&format!("{name}_API_KEY"))?;
        Some(AiProviderConfig { api_key, base_url, model })
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
