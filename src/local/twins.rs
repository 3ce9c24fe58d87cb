//! The settings that lead every outside call to a running sandbox. The sandbox knows nothing of the product, so the
//! product's names for its addresses stand here.

/// By name, for a sandbox at `url`. The credentials are those it accepts unasked; nothing outside knows them.
pub fn sandbox_settings(url: &str) -> Vec<(String, String)> {
    let url = url.trim_end_matches('/');
    [
        ("TWITTER_API_BASE_URL", format!("{url}/x")),
        ("TWITTER_AUTHORIZE_URL", format!("{url}/x/i/oauth2/authorize")),
        // Nobody listens there: the address that the browser ends at has the code and the state to send on.
        ("TWITTER_CALLBACK_URL", "http://127.0.0.1:3000/connected/x".to_owned()),
        ("TWITTER_CLIENT_ID", "sandbox-client".to_owned()),
        ("TWITTER_CLIENT_SECRET", "sandbox-secret".to_owned()),
        ("GROK_BASE_URL", format!("{url}/xai/v1")),
        ("GROK_API_KEY", "xai-sandbox-key".to_owned()),
        ("TOGETHER_BASE_URL", format!("{url}/together/v1")),
        ("TOGETHER_API_KEY", "together-sandbox-key".to_owned()),
        ("OPENAI_BASE_URL", format!("{url}/openai/v1")),
        ("OPENAI_API_KEY", "sk-sandbox-key".to_owned()),
        ("PATREON_BASE_URL", format!("{url}/patreon")),
        ("PATREON_CLIENT_ID", "sandbox-client".to_owned()),
        ("PATREON_CLIENT_SECRET", "patreon-sandbox-secret".to_owned()),
        ("PATREON_WEBHOOK_SECRET", "patreon-sandbox-webhook-secret".to_owned()),
        ("PATREON_REDIRECT_URI", "http://127.0.0.1:5173/patreon".to_owned()),
        ("FIREBASE_PROJECT_ID", "sandbox-project".to_owned()),
        ("FIREBASE_KEYS_URL", format!("{url}/firebase/service_accounts/v1/jwk/securetoken@system.gserviceaccount.com")),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn every_outside_address_of_the_settings_leads_to_the_sandbox() {
        let mut given = sandbox_settings("http://127.0.0.1:9/");
        given.push(("DATABASE_URL".into(), "postgres://localhost/m".into()));
        given.push(("REDIS_URL".into(), "redis://localhost".into()));
        let lookup = |name: &str| given.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        let config = Config::load(&lookup).unwrap();
        // By the settings' own shape: one that is added later and forgotten above shows up here.
        let shown = format!("{config:?}");
        let outside: Vec<_> =
            shown.match_indices("https://").map(|(at, _)| &shown[at..shown.len().min(at + 60)]).collect();
        assert!(outside.is_empty(), "{outside:?}");
        assert!(config.ai.grok.is_some() && config.ai.together.is_some() && config.ai.openai.is_some());
        assert!(config.firebase.is_some() && config.patreon.is_some() && config.x.callback.is_some());
    }
}
