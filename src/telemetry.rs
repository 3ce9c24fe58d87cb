//! Logs: JSON lines in production, readable text in development, on standard error.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, fmt};

use crate::config::{Config, Environment};

/// Starts logging for this process. Call once, first.
pub fn start(config: &Config) {
    // Settings that were loaded hold a filter that can be read.
    let filter = EnvFilter::new(&config.log_level);
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.environment {
        Environment::Development => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        Environment::Staging | Environment::Production => builder.json().flatten_event(true).init(),
    }
}

/// An error with all its causes on one line, for the one place that logs it.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
