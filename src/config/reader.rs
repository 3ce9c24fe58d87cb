//! How single variables are read: each problem is noted with the variable's name and what it needs, and reading goes
//! on.

use std::{fmt, ops::RangeInclusive, path::PathBuf, str::FromStr, time::Duration};

use secrecy::SecretString;
use tracing_subscriber::{EnvFilter, filter::LevelFilter};
use url::Url;

use super::{AiProviderConfig, FirebaseConfig, JwtConfig, Lookup, PatreonConfig};
use crate::http::client_address::Network;

const A_YEAR_SECONDS: u64 = 366 * 24 * 3600;
/// A word alone has to be a level: the library would take a misspelt one for the name of a part.
pub(super) fn is_log_filter(text: &String) -> bool {
    let is_meant = |part: &str| part.contains('=') || part.contains('[') || part.trim().parse::<LevelFilter>().is_ok();
    EnvFilter::try_new(text).is_ok() && text.split(',').all(is_meant)
}

#[expect(clippy::ptr_arg, reason = "the reader gives what it has parsed")]
pub(super) fn is_header_name(name: &String) -> bool {
    poem::http::HeaderName::try_from(name.as_str()).is_ok()
}

/// As a browser sends it: compared letter by letter, so that one written otherwise would never be allowed.
fn is_origin(text: &str) -> bool {
    let is_exact = |url: Url| url.origin().is_tuple() && url.origin().ascii_serialization() == text;
    text == "*" || (!text.contains('*') && Url::parse(text).is_ok_and(is_exact))
}

/// A page of the frontend: what comes back there is worth an account.
fn is_callback(text: &str) -> bool {
    let Ok(url) = Url::parse(text) else { return false };
    let here = url.scheme() == "http" && url.host_str() == Some("127.0.0.1");
    let names_nobody = url.username().is_empty() && url.password().is_none();
    (url.scheme() == "https" || here) && url.fragment().is_none() && names_nobody
}

#[expect(clippy::ptr_arg, reason = "the reader gives what it has parsed")]
pub(super) fn is_x264_preset(name: &String) -> bool {
    const PRESETS: [&str; 9] =
        ["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"];
    PRESETS.contains(&name.as_str())
}

/// Reads variables and notes all that is wrong with them.
pub(super) struct Reader<'a> {
    pub(super) lookup: Lookup<'a>,
    pub(super) problems: Vec<String>,
}

impl Reader<'_> {
    /// A variable set to nothing counts as not set: that is how Compose and App Platform pass absent ones.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        (self.lookup)(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    pub(super) fn secret(&self, name: &str) -> Option<SecretString> {
        self.text(name).map(SecretString::from)
    }

    pub(super) fn list(&self, name: &str) -> Vec<String> {
        let text = self.text(name).unwrap_or_default();
        text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
    }

    pub(super) fn origins(&mut self, name: &str) -> Vec<String> {
        let origins = self.list(name);
        for origin in origins.iter().filter(|origin| !is_origin(origin)) {
            let needs = "scheme://host, with a port unless it is the usual one, in small letters and nothing behind it";
            self.problems.push(format!("{name} is not valid: {origin:?} is no origin; it needs {needs}"));
        }
        origins
    }

    pub(super) fn networks(&mut self, name: &str) -> Vec<Network> {
        let mut networks = Vec::new();
        for text in self.list(name) {
            match text.parse() {
                Ok(network) => networks.push(network),
                Err(_no_network) => self.problems.push(format!(
                    "{name} is not valid: {text:?} is no network; it needs addresses or networks such as 10.0.0.0/8, \
                     with nothing behind the prefix but zeros, separated by commas"
                )),
            }
        }
        networks
    }

    /// Where an outside service sends users back to. As text: it is compared there letter by letter.
    pub(super) fn callback(&mut self, name: &str) -> Option<String> {
        const NEEDS: &str = "the https address of a page, without # (on this machine http://127.0.0.1 will do)";
        self.optional(name, NEEDS, |text: &String| is_callback(text))
    }

    pub(super) fn path(&self, name: &str, default: &str) -> PathBuf {
        self.text(name).unwrap_or_else(|| default.to_owned()).into()
    }

    pub(super) fn optional<T: FromStr>(&mut self, name: &str, needs: &str, valid: impl Fn(&T) -> bool) -> Option<T> {
        let text = self.text(name)?;
        let value = text.parse().ok().filter(valid);
        if value.is_none() {
            self.problems.push(format!("{name} is not valid: it needs {needs}"));
        }
        value
    }

    pub(super) fn parse<T: FromStr>(&mut self, name: &str, needs: &str, default: T) -> T {
        self.optional(name, needs, |_| true).unwrap_or(default)
    }

    pub(super) fn number<T: FromStr + PartialOrd + fmt::Display>(
        &mut self,
        name: &str,
        allowed: RangeInclusive<T>,
        default: T,
    ) -> T {
        let needs = format!("a whole number from {} to {}", allowed.start(), allowed.end());
        self.optional(name, &needs, |number: &T| allowed.contains(number)).unwrap_or(default)
    }

    /// Bounded, because a time that cannot be added to the present one would end the program that tries.
    pub(super) fn seconds(&mut self, name: &str, least: u64, default: u64) -> Duration {
        Duration::from_secs(self.number(name, least..=A_YEAR_SECONDS, default))
    }

    pub(super) fn url(&mut self, name: &str, default: &str) -> Url {
        let default = Url::parse(default).expect("defaults are valid addresses");
        self.optional(name, "an http or https address", |url: &Url| matches!(url.scheme(), "http" | "https"))
            .unwrap_or(default)
    }

    /// Never repeats the value: an address of a server carries its password.
    pub(super) fn required_secret(&mut self, names: &[&str], example: &str, schemes: &[&str]) -> SecretString {
        let Some(value) = names.iter().find_map(|name| self.text(name)) else {
            self.problems.push(format!("{} is not set ({example})", names[0]));
            return SecretString::default();
        };
        if !schemes.iter().any(|scheme| value.starts_with(scheme)) {
            self.problems.push(format!("{} is not valid: it needs the form {example}", names[0]));
        }
        value.into()
    }

    pub(super) fn on_or_off(&mut self, name: &str, default: bool) -> bool {
        let word = self.optional(name, "on or off", |word: &String| matches!(word.as_str(), "on" | "off"));
        word.map_or(default, |word| word == "on")
    }

    pub(super) fn jwt(&mut self) -> Option<JwtConfig> {
        let minutes = self.number("JWT_ACCESS_TOKEN_EXPIRE_MINUTES", 1..=A_YEAR_SECONDS / 60, 60);
        let access_token_lifetime = Duration::from_secs(60 * minutes);
        self.secret("JWT_SECRET_KEY").map(|secret| JwtConfig { secret, access_token_lifetime })
    }

    pub(super) fn firebase(&mut self) -> Option<FirebaseConfig> {
        let keys_url = self.url(
            "FIREBASE_KEYS_URL",
            "https://www.googleapis.com/service_accounts/v1/jwk/securetoken@system.gserviceaccount.com",
        );
        let recent_sign_in = self.seconds("FIREBASE_RECENT_SIGN_IN_SECONDS", 60, 300);
        let project = self.text("FIREBASE_PROJECT_ID")?;
        Some(FirebaseConfig { project, tenant: self.text("FIREBASE_TENANT_ID"), keys_url, recent_sign_in })
    }

    pub(super) fn patreon(&mut self) -> Option<PatreonConfig> {
        let base_url = self.url("PATREON_BASE_URL", "https://www.patreon.com");
        let grace = Duration::from_secs(24 * 3600 * self.number("PATREON_GRACE_DAYS", 1..=366, 7));
        let client_id = self.text("PATREON_CLIENT_ID")?;
        let callback = self.callback("PATREON_REDIRECT_URI");
        for name in ["PATREON_CLIENT_SECRET", "PATREON_REDIRECT_URI"] {
            if self.text(name).is_none() {
                self.problems.push(format!("{name} is not set, and PATREON_CLIENT_ID needs it"));
            }
        }
        let client_secret = self.secret("PATREON_CLIENT_SECRET").unwrap_or_default();
        let webhook_secret = self.secret("PATREON_WEBHOOK_SECRET");
        Some(PatreonConfig {
            base_url,
            client_id,
            client_secret,
            redirect_uri: callback.unwrap_or_default(),
            webhook_secret,
            grace,
        })
    }

    pub(super) fn ai_provider(&mut self, name: &str, base_url: &str, model: &str) -> Option<AiProviderConfig> {
        let base_url = self.url(&format!("{name}_BASE_URL"), base_url);
        let model = self.text(&format!("{name}_MODEL")).unwrap_or_else(|| model.to_owned());
        let api_key = self.secret(&format!("{name}_API_KEY"))?;
        Some(AiProviderConfig { api_key, base_url, model })
    }
}
