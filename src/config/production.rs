//! What is fit for development only: production refuses it, all at once, each with what to change.

use std::net::IpAddr;

use secrecy::{ExposeSecret, SecretString};
use tracing_subscriber::filter::LevelFilter;
use url::{Host, Url};

use super::{Config, servers::ssl_mode};
use crate::crypto::Keyring;

/// Bytes of a secret that signs or encrypts.
const SHORTEST_SECRET: usize = 32;
/// A random secret of that length has more different characters than this in any alphabet.
const LEAST_VARIETY: usize = 8;

/// What stands in samples, in guides and in the sandbox, and is nobody's secret.
const PLACEHOLDERS: [&str; 8] =
    ["change_me", "change-me", "changeme", "placeholder", "your-", "your_", "example", "sandbox"];
const COMMON: [&str; 6] = ["password", "secret", "test", "admin", "postgres", "multivio"];

/// One line for everything that has to change.
pub(super) fn unfit(config: &Config) -> Vec<String> {
    let mut unfit = Vec::new();
    secrets(config, &mut unfit);
    addresses(config, &mut unfit);
    for origin in &config.api.allowed_origins {
        if origin == "*" {
            unfit.push("ALLOWED_ORIGINS allows every page there is: name the origins".to_owned());
        } else if origin.starts_with("http://") {
            unfit.push(format!("ALLOWED_ORIGINS allows {origin}, which anybody on the way can alter: use https"));
        } else if Url::parse(origin).is_ok_and(|origin| is_near(&origin)) {
            unfit.push(format!("ALLOWED_ORIGINS allows {origin}, a page on somebody's own machine: leave it out"));
        }
    }
    if config.media.import_loopback_port.is_some() {
        unfit.push("MEDIA_IMPORT_LOOPBACK_PORT lets users read from this machine: leave it out".to_owned());
    }
    if config.log_level.split(',').any(tells_everything) {
        let remedy = "use info, and name the part to look into: info,multivio::jobs=debug";
        unfit.push(format!("LOG_LEVEL says everything about everything: {remedy}"));
    }
    unfit.into_iter().map(|line| format!("{line} (ENVIRONMENT is production)")).collect()
}

/// More than is told of what goes well, by no part in particular: by all, by all of ours, or by whatever span.
fn tells_everything(directive: &str) -> bool {
    let (target, level) = directive.rsplit_once('=').unwrap_or(("", directive));
    let target = target.split('[').next().unwrap_or_default().trim();
    level.trim().parse::<LevelFilter>().is_ok_and(|level| level > LevelFilter::INFO)
        && (target.is_empty() || target == env!("CARGO_CRATE_NAME"))
}

fn secrets(config: &Config, unfit: &mut Vec<String>) {
    match Keyring::new(&config.encryption_keys) {
        Err(error) => unfit.push(error.to_string()),
        Ok(_) if config.encryption_keys.iter().any(|key| is_dull(key.expose_secret())) => {
            unfit.push("ENCRYPTION_KEY is no random key: `openssl rand -base64 32` makes one".to_owned());
        }
        Ok(_) => {}
    }
    if let Some(jwt) = &config.jwt {
        let secret = jwt.secret.expose_secret();
        if secret.len() < SHORTEST_SECRET || is_dull(secret) || is_placeholder(secret) {
            unfit.push("JWT_SECRET_KEY is short or can be guessed: `openssl rand -base64 48` makes one".to_owned());
        }
    }
    if has_guessable_password(&config.database.url) {
        unfit.push("DATABASE_URL has a password that can be guessed: give its user another".to_owned());
    }
    if has_guessable_password(&config.redis.url) {
        unfit.push("REDIS_URL has a password that can be guessed: give Redis another (requirepass)".to_owned());
    }
    if config.firebase.as_ref().is_some_and(|firebase| is_no_project(&firebase.project)) {
        let remedy = "set it to the project's own, or leave it out";
        unfit.push(format!("FIREBASE_PROJECT_ID is a placeholder or a project of the emulator: {remedy}"));
    }
    let x_client_id = config.x.client_id.clone().map(SecretString::from);
    let patreon = config.patreon.as_ref();
    let patreon_client_id = patreon.map(|patreon| SecretString::from(patreon.client_id.clone()));
    let keys = [
        ("PATREON_CLIENT_ID", patreon_client_id.as_ref()),
        ("PATREON_CLIENT_SECRET", patreon.map(|patreon| &patreon.client_secret)),
        ("PATREON_WEBHOOK_SECRET", patreon.and_then(|patreon| patreon.webhook_secret.as_ref())),
        ("GROK_API_KEY", config.ai.grok.as_ref().map(|provider| &provider.api_key)),
        ("TOGETHER_API_KEY", config.ai.together.as_ref().map(|provider| &provider.api_key)),
        ("OPENAI_API_KEY", config.ai.openai.as_ref().map(|provider| &provider.api_key)),
        ("TWITTER_CLIENT_ID", x_client_id.as_ref()),
        ("TWITTER_CLIENT_SECRET", config.x.client_secret.as_ref()),
        ("METRICS_TOKEN", config.api.metrics_token.as_ref()),
    ];
    for (name, key) in keys {
        if key.is_some_and(|key| is_placeholder(key.expose_secret())) {
            unfit.push(format!("{name} is a placeholder: set it to the service's own, or leave it out"));
        }
    }
}

/// In the address itself, or in its query, where Postgres takes it too. None at all is the server's to judge.
fn has_guessable_password(url: &SecretString) -> bool {
    let Ok(url) = Url::parse(url.expose_secret()) else { return false };
    let in_address = url.password().map(percent_decoded);
    let in_query = url.query_pairs().filter(|(name, _)| name == "password").map(|(_, value)| value.into_owned());
    in_address.into_iter().chain(in_query).any(|password| is_placeholder(&password))
}

fn percent_decoded(text: &str) -> String {
    let pair = format!("p={}", text.replace('+', "%2B"));
    url::form_urlencoded::parse(pair.as_bytes()).next().map(|(_, value)| value.into_owned()).unwrap_or_default()
}

/// Firebase's emulator takes `demo-...` for projects that do not exist.
fn is_no_project(project: &str) -> bool {
    is_placeholder(project) || project.starts_with("demo-")
}

/// A database that is told to be spoken to in the clear, over lines that are not ours.
fn is_open_to_the_internet(url: &SecretString) -> bool {
    // Whoever connects takes `allow` for `disable`.
    let is_open = ssl_mode(url).is_some_and(|mode| mode == "disable" || mode == "allow");
    let Ok(url) = Url::parse(url.expose_secret()) else { return false };
    let query = |wanted: &str| url.query_pairs().find(|(name, _)| name == wanted).map(|(_, value)| value.into_owned());
    if !is_open {
        return false;
    }
    let host = query("host").or_else(|| url.host_str().map(str::to_owned)).unwrap_or_default();
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    match address {
        Ok(address) => !is_near_address(address.to_canonical()),
        // A folder of sockets, a name without a domain, and what private networks call theirs.
        Err(_name) => {
            host.contains('.')
                && !host.starts_with('/')
                && ![".internal", ".local", ".localhost", ".lan"].iter().any(|end| host.ends_with(end))
        }
    }
}

/// Outside services are asked over TLS, and outside.
fn addresses(config: &Config, unfit: &mut Vec<String>) {
    let provider = |provider: &Option<super::AiProviderConfig>| provider.as_ref().map(|it| it.base_url.clone());
    let addresses = [
        ("TWITTER_API_BASE_URL", Some(config.x.api_base.clone())),
        ("TWITTER_AUTHORIZE_URL", Some(config.x.authorize_page.clone())),
        ("TWITTER_CALLBACK_URL", config.x.callback.as_deref().and_then(|text| Url::parse(text).ok())),
        ("GROK_BASE_URL", provider(&config.ai.grok)),
        ("TOGETHER_BASE_URL", provider(&config.ai.together)),
        ("OPENAI_BASE_URL", provider(&config.ai.openai)),
        ("PATREON_BASE_URL", config.patreon.as_ref().map(|patreon| patreon.base_url.clone())),
        ("PATREON_REDIRECT_URI", config.patreon.as_ref().and_then(|patreon| Url::parse(&patreon.redirect_uri).ok())),
        ("FIREBASE_KEYS_URL", config.firebase.as_ref().map(|firebase| firebase.keys_url.clone())),
    ];
    if is_open_to_the_internet(&config.database.url) {
        let remedy = "use sslmode=verify-full with the server's certificate, or at least require";
        unfit.push(format!("DATABASE_URL says sslmode=disable or allow to a host on the internet: {remedy}"));
    }
    for (name, url) in addresses {
        let Some(url) = url else { continue };
        if url.scheme() != "https" || is_near(&url) {
            unfit.push(format!("{name} leads to a stand-in or over an open line: leave it out, or use https outside"));
        }
    }
}

fn is_near(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => {
            // A dot at the end only says that the name is whole.
            let name = name.trim_end_matches('.');
            !name.contains('.') || [".localhost", ".local"].iter().any(|end| name.ends_with(end))
        }
        Some(Host::Ipv4(address)) => is_near_address(address.into()),
        Some(Host::Ipv6(address)) => is_near_address(address.to_canonical()),
        None => true,
    }
}

fn is_near_address(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_link_local() || v4.is_unspecified(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unspecified() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

fn is_placeholder(secret: &str) -> bool {
    let secret = secret.to_ascii_lowercase();
    COMMON.contains(&secret.as_str()) || PLACEHOLDERS.iter().any(|word| secret.contains(word))
}

fn is_dull(secret: &str) -> bool {
    let different: std::collections::BTreeSet<_> = secret.bytes().collect();
    different.len() < LEAST_VARIETY
}

#[cfg(test)]
mod tests {
    use super::super::{ConfigError, Environment};
    use super::*;

    const FIT: [(&str, &str); 12] = [
        ("ENVIRONMENT", "production"),
        ("DATABASE_URL", "postgres://multivio:u3Jk9sLq@db.internal/multivio"),
        ("REDIS_URL", "redis://belt.internal"),
        ("ENCRYPTION_KEY", "4f3VvPAy9sZcE1qUO1m5dYxk2H0bWJtq8R7nLhGc6Xo="),
        ("JWT_SECRET_KEY", "nXk2o9Vb4s7QhT0yJ3mLcR8wE5zAu1Gf6Dp+Ki/SxHq"),
        ("LOCAL_TOKENS", "on"),
        ("GROK_API_KEY", "xai-9f2c71d0"),
        ("ALLOWED_ORIGINS", "https://app.multivio.dev"),
        ("PATREON_CLIENT_ID", "k3Vb9sLqT0yJ"),
        ("PATREON_CLIENT_SECRET", "p7Wm2xRd8uHc"),
        ("PATREON_WEBHOOK_SECRET", "z1Nf6gYe4oKa"),
        ("PATREON_REDIRECT_URI", "https://app.multivio.dev/patreon"),
    ];

    /// Production's settings with these in their place; set to nothing counts as not set.
    fn load(changes: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let lookup = |name: &str| {
            let found = changes.iter().chain(&FIT).find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Config::load(&lookup)
    }

    #[test]
    fn production_starts_with_what_is_fit_for_it() {
        assert_eq!(load(&[]).unwrap().environment, Environment::Production);
        load(&[("LOG_LEVEL", "info,multivio::jobs=debug"), ("ALLOWED_ORIGINS", ""), ("JWT_SECRET_KEY", "")]).unwrap();
    }

    #[test]
    fn production_refuses_each_thing_that_is_only_fit_for_development_by_name() {
        for (name, value) in [
            ("ENCRYPTION_KEY", ""),
            ("ENCRYPTION_KEY", "hunter2"),
            ("ENCRYPTION_KEY", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
            ("JWT_SECRET_KEY", "hunter2"),
            ("JWT_SECRET_KEY", "please-change-me-please-change-me-please"),
            ("JWT_SECRET_KEY", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"),
            ("DATABASE_URL", "postgres://multivio:password@db/multivio"),
            ("DATABASE_URL", "postgres://multivio:p%61ssword@db/multivio"),
            ("DATABASE_URL", "postgres://multivio@db/multivio?password=password"),
            ("DATABASE_URL", "postgres://multivio:u3Jk9sLq@db.multivio.dev/multivio?sslmode=disable"),
            ("DATABASE_URL", "postgres://multivio:u3Jk9sLq@203.0.113.7/multivio?sslmode=disable"),
            ("DATABASE_URL", "postgres://multivio:u3Jk9sLq@203.0.113.7/multivio?sslmode=DISABLE"),
            ("DATABASE_URL", "postgres://multivio:u3Jk9sLq@203.0.113.7/multivio?sslmode=require&ssl-mode=allow"),
            ("DATABASE_URL", "postgres:///multivio?host=db.multivio.dev&password=u3Jk9sLq&sslmode=disable"),
            ("REDIS_URL", "redis://:password@belt.internal"),
            ("REDIS_URL", "rediss://default:CHANGE_ME@belt.internal"),
            ("FIREBASE_PROJECT_ID", "CHANGE_ME"),
            ("FIREBASE_PROJECT_ID", "demo-project"),
            ("FIREBASE_PROJECT_ID", "sandbox-project"),
            ("ENVIRONMENT", "Production"),
            ("ENVIRONMENT", "prod"),
            ("METRICS_TOKEN", "CHANGE_ME"),
            ("GROK_API_KEY", "CHANGE_ME"),
            ("OPENAI_API_KEY", "sk-sandbox-key"),
            ("TWITTER_CLIENT_ID", "CHANGE_ME"),
            ("TWITTER_CLIENT_SECRET", "sandbox-secret"),
            ("PATREON_CLIENT_ID", "sandbox-client"),
            ("PATREON_CLIENT_SECRET", "patreon-sandbox-secret"),
            ("PATREON_CLIENT_SECRET", ""),
            ("PATREON_WEBHOOK_SECRET", "patreon-sandbox-webhook-secret"),
            ("PATREON_BASE_URL", "http://127.0.0.1:9/patreon"),
            ("PATREON_REDIRECT_URI", "http://127.0.0.1:5173/patreon"),
            ("PATREON_REDIRECT_URI", ""),
            ("TWITTER_API_BASE_URL", "http://api.x.com"),
            ("TWITTER_API_BASE_URL", "https://127.0.0.1:9/x"),
            ("TWITTER_AUTHORIZE_URL", "http://127.0.0.1:9/x/i/oauth2/authorize"),
            ("TWITTER_CALLBACK_URL", "http://127.0.0.1:3000/connected"),
            ("GROK_BASE_URL", "https://localhost/xai"),
            ("GROK_BASE_URL", "https://sandbox:9000/xai"),
            ("GROK_BASE_URL", "https://localhost./xai"),
            ("GROK_BASE_URL", "https://sandbox.local:9000/xai"),
            ("GROK_BASE_URL", "https://[::ffff:10.0.0.1]/xai"),
            ("ALLOWED_ORIGINS", "https://a.multivio.dev,*"),
            ("ALLOWED_ORIGINS", "http://a.multivio.dev"),
            ("ALLOWED_ORIGINS", "https://localhost:3000"),
            ("MEDIA_IMPORT_LOOPBACK_PORT", "4000"),
            ("LOG_LEVEL", "debug"),
            ("LOG_LEVEL", "multivio=info,TRACE"),
            ("LOG_LEVEL", "info,multivio=debug"),
            ("LOG_LEVEL", "info,[job]=trace"),
        ] {
            let error = load(&[(name, value)]).expect_err(value).to_string();
            assert!(error.starts_with("1 problem(s)") && error.contains(name), "{name}={value}: {error}");
            let is_secret = !value.is_empty() && (name.ends_with("KEY") || name.ends_with("SECRET"));
            assert!(!is_secret || !error.contains(value), "the value is repeated: {error}");
        }
    }

    #[test]
    fn a_database_near_by_may_be_spoken_to_in_the_clear() {
        for host in ["db.internal", "db", "10.0.0.7", "127.0.0.1", "[fd00::7]"] {
            load(&[("DATABASE_URL", &format!("postgres://multivio:u3Jk9sLq@{host}/multivio?sslmode=disable"))])
                .unwrap();
        }
        load(&[("DATABASE_URL", "postgres://multivio:u3Jk9sLq@db.multivio.dev/multivio?sslmode=verify-full")]).unwrap();
        load(&[("FIREBASE_PROJECT_ID", "multivio-4f21b")]).unwrap();
    }

    #[test]
    fn a_misspelt_environment_is_judged_as_production() {
        let error = load(&[("ENVIRONMENT", "prodution"), ("LOG_LEVEL", "debug")]).unwrap_err().to_string();
        assert!(error.starts_with("2 problem(s)") && error.contains("LOG_LEVEL"), "{error}");
    }

    #[test]
    fn all_of_it_is_one_list_and_staging_and_development_take_it() {
        let all = [
            ("ENCRYPTION_KEY", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
            ("JWT_SECRET_KEY", "short"),
            ("GROK_API_KEY", "CHANGE_ME"),
            ("GROK_BASE_URL", "http://127.0.0.1:9/xai"),
            ("ALLOWED_ORIGINS", "*"),
            ("LOG_LEVEL", "debug"),
        ];
        let error = load(&all).unwrap_err().to_string();
        assert!(error.starts_with("6 problem(s)"), "{error}");
        for environment in ["staging", "development"] {
            load(&[&all[..], &[("ENVIRONMENT", environment)]].concat()).unwrap();
        }
    }
}
