//! `multivio check`: looks at everything the product needs and names every problem at once, each with its remedy.
//!
//! Changes nothing but files it makes and removes again to see whether it may write.

mod database;
mod redis;
mod secrets;
mod tools;

use clap::Args;
use comfy_table::{Table, presets};
use serde::Serialize;

use super::{Failure, Screen};
use crate::{
    config::{Config, Environment},
    crypto::{CryptoError, Keyring},
    identity::LocalTokens,
};

#[derive(Debug, Args)]
pub struct Arguments {}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Line {
    name: &'static str,
    verdict: Verdict,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// It works, but not as it should in earnest.
    Warning,
    /// Nothing works without it.
    Problem,
    /// Not configured; what it does is not offered.
    Off,
}

impl Line {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, found: found.into(), remedy: None }
    }

    fn off(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Off, found: found.into(), remedy: None }
    }

    fn warning(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Warning, found: found.into(), remedy: Some(remedy.into()) }
    }

    fn problem(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Problem, found: found.into(), remedy: Some(remedy.into()) }
    }
}

pub async fn run(_arguments: Arguments, screen: Screen) -> Result<(), Failure> {
    let lines = match Config::from_env() {
        Ok(config) => look(&config).await,
        Err(error) => error
            .0
            .iter()
            .map(|problem| Line::problem("settings", problem, "Set it in the environment or in .env; see .env.sample"))
            .collect(),
    };
    screen.show(&lines, || table(&lines))?;
    let problems = lines.iter().filter(|line| line.verdict == Verdict::Problem).count();
    if problems == 0 {
        return Ok(());
    }
    eprintln!("{problems} problem(s) to solve.");
    Err(Failure::silent())
}

async fn look(config: &Config) -> Vec<Line> {
    let (database, redis, tools) =
        tokio::join!(database::look(&config.database), redis::look(&config.redis), tools::look(config));
    // Whoever cannot ask the database has said why.
    let may_be_asked = database.iter().any(|line| line.name == "schema" && line.verdict == Verdict::Ok)
        && database.iter().all(|line| line.verdict != Verdict::Problem);
    let stored = if may_be_asked { secrets::look(config).await } else { None };
    [settings(config), database, stored.into_iter().collect(), redis, tools, services(config)].concat()
}

/// What the settings themselves are missing.
fn settings(config: &Config) -> Vec<Line> {
    let mut lines = Vec::new();
    let name = match config.environment {
        Environment::Development => "development",
        Environment::Staging => "staging",
        Environment::Production => "production",
    };
    lines.push(Line::ok("settings", format!("complete, for {name}")));
    lines.extend(sign_in(config));
    lines.push(match (Keyring::new(&config.encryption_keys), config.encryption_keys.len()) {
        (Err(CryptoError::NoKey), _) => Line::problem(
            "encryption",
            "ENCRYPTION_KEY is not set: accounts' tokens cannot be stored",
            "Set it to `openssl rand -base64 32` and keep it safe: without it they cannot be read again",
        ),
        (Err(error), _) => Line::problem(
            "encryption",
            error.to_string(),
            "Set each to what `openssl rand -base64 32` printed, whole; the API does not start with it",
        ),
        (Ok(_), 1) => Line::ok("encryption", "1 key"),
        (Ok(_), keys) => {
            Line::ok("encryption", format!("{keys} keys; `multivio keys rotate --check` says whether all are needed"))
        }
    });
    lines
}

/// The ways in. API keys are made by those who came in by another one.
fn sign_in(config: &Config) -> Vec<Line> {
    let mut lines = Vec::new();
    let in_production = config.environment == Environment::Production;
    lines.push(match config.jwt.as_ref().map(LocalTokens::new) {
        Some(Err(weak)) => Line::problem("tokens", weak.to_string(), "Set JWT_SECRET_KEY to `openssl rand -base64 48`"),
        Some(Ok(_)) if in_production => Line::warning(
            "tokens",
            "local HS256 tokens are on in production: whoever has JWT_SECRET_KEY can be anybody",
            "Set LOCAL_TOKENS=off where users sign in with Firebase",
        ),
        Some(Ok(_)) => Line::ok("tokens", "local HS256 tokens are on"),
        None if config.jwt_ignored => Line::warning(
            "tokens",
            "JWT_SECRET_KEY is set, but local tokens are off",
            "In production they have to be asked for: LOCAL_TOKENS=on; or take the secret away",
        ),
        None => Line::off("tokens", "no JWT_SECRET_KEY: no local tokens"),
    });
    lines.push(match &config.firebase {
        Some(firebase) => Line::ok("firebase", format!("users of {} sign in", firebase.project)),
        None => Line::off("firebase", "no FIREBASE_PROJECT_ID: nobody signs in with Firebase"),
    });
    if config.jwt.is_none() && config.firebase.is_none() {
        lines.push(Line::problem(
            "sign-in",
            "nobody can sign in",
            "Set FIREBASE_PROJECT_ID, or JWT_SECRET_KEY (`openssl rand -base64 48`; in production with LOCAL_TOKENS=on)",
        ));
    }
    lines
}

/// Services outside that are used when they are configured.
fn services(config: &Config) -> Vec<Line> {
    let providers = [("grok", &config.ai.grok), ("together", &config.ai.together), ("openai", &config.ai.openai)];
    let on: Vec<_> = providers
        .iter()
        .filter_map(|(name, provider)| provider.as_ref().map(|provider| format!("{name} ({})", provider.model)))
        .collect();
    let ai = match on.as_slice() {
        [] => Line::off("language models", "no GROK_API_KEY, TOGETHER_API_KEY or OPENAI_API_KEY"),
        on => Line::ok("language models", format!("asked in this order: {}", on.join(", "))),
    };
    let x = match (&config.x.client_id, &config.x.client_secret) {
        (Some(_), Some(_)) => Line::ok("X", "client configured"),
        _ => Line::off("X", "no TWITTER_CLIENT_ID and TWITTER_CLIENT_SECRET: no account can be connected"),
    };
    vec![ai, x]
}

fn table(lines: &[Line]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    for line in lines {
        let word = match line.verdict {
            Verdict::Ok => "ok",
            Verdict::Warning => "warning",
            Verdict::Problem => "PROBLEM",
            Verdict::Off => "off",
        };
        let said = match &line.remedy {
            Some(remedy) => format!("{}\n-> {remedy}", line.found),
            None => line.found.clone(),
        };
        table.add_row([line.name, word, &said]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(pairs: &[(&str, &str)]) -> Config {
        let servers = [("DATABASE_URL", "postgres://u@h/n"), ("REDIS_URL", "redis://h")];
        let lookup = |name: &str| {
            let found = pairs.iter().chain(&servers).find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Config::load(&lookup).unwrap()
    }

    fn verdict(lines: &[Line], name: &str) -> Verdict {
        lines.iter().find(|line| line.name == name).unwrap().verdict
    }

    #[test]
    fn what_is_not_configured_is_off_and_says_so() {
        let lines = services(&config(&[]));
        assert!(lines.iter().all(|line| line.verdict == Verdict::Off));
        let lines = services(&config(&[("TOGETHER_API_KEY", "k"), ("GROK_API_KEY", "k")]));
        assert!(lines[0].found.starts_with("asked in this order: grok (grok"));
    }

    #[test]
    fn weak_or_missing_secrets_are_problems_and_are_not_shown() {
        let lines = settings(&config(&[("JWT_SECRET_KEY", "hunter2")]));
        assert_eq!(verdict(&lines, "tokens"), Verdict::Problem);
        assert_eq!(verdict(&lines, "encryption"), Verdict::Problem);
        assert!(!format!("{lines:?}").contains("hunter2"));
        let lines = settings(&config(&[("ENCRYPTION_KEY", "hunter2")]));
        assert_eq!(verdict(&lines, "encryption"), Verdict::Problem, "it is no key");
        assert!(!format!("{lines:?}").contains("hunter2"));
        let key = "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY=";
        let lines = settings(&config(&[("ENCRYPTION_KEY", key), ("ENCRYPTION_KEYS_OLD", key)]));
        assert_eq!(verdict(&lines, "encryption"), Verdict::Ok);
    }

    #[test]
    fn a_remedy_stands_beside_its_problem() {
        let text = table(&[Line::problem("redis", "does not answer", "Start it")]);
        assert!(text.contains("does not answer") && text.contains("-> Start it"));
    }
}
