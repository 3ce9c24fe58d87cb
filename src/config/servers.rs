//! Postgres and Redis: where they are, and whose word is taken for it that they are who they say.

use std::borrow::Cow;

use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::{Authority, DatabaseConfig, RedisConfig, reader::Reader};

/// More than any Postgres is set up for.
const MOST_CONNECTIONS: u32 = 10_000;
/// What each is called by those who may have written the address.
const SSL_MODE: [&str; 2] = ["sslmode", "ssl-mode"];
const SSL_ROOT_CERT: [&str; 3] = ["sslrootcert", "ssl-root-cert", "ssl-ca"];

impl DatabaseConfig {
    /// Whether the address wants the authority's word and not the host's name: for servers that are reached by
    /// another name than their certificate has.
    pub fn asks_for_any_name(&self) -> bool {
        last(&self.url, &SSL_MODE).is_some_and(|mode| mode == "verify-ca")
    }

    /// Whose word is taken for it that the server is the right one, in words for an operator.
    pub fn trust(&self) -> Cow<'static, str> {
        let proof = match last(&self.url, &SSL_MODE).as_deref() {
            Some("verify-ca") => "by any name",
            Some("verify-full") => "by its name",
            _ if self.authority.is_some() => "by its name",
            _ => return "not verified".into(),
        };
        match (&self.authority, last(&self.url, &SSL_ROOT_CERT)) {
            (Some(_), _) => format!("verified {proof} by DATABASE_CA_CERT").into(),
            (None, Some(_)) => format!("verified {proof} by sslrootcert in DATABASE_URL").into(),
            (None, None) => format!("verified {proof} by the public authorities").into(),
        }
    }
}

impl RedisConfig {
    /// See [`DatabaseConfig::trust`].
    pub fn trust(&self) -> &'static str {
        match &self.authority {
            Some(_) => "verified by REDIS_CA_CERT",
            None if !self.url.expose_secret().starts_with("rediss://") => "not encrypted",
            None if is_insecure(&self.url) => "encrypted, not verified",
            None => "verified by the public authorities",
        }
    }
}

impl Reader<'_> {
    pub(super) fn database(&mut self) -> DatabaseConfig {
        let config = DatabaseConfig {
            url: self.required_secret(
                &["DATABASE_URL", "SUPABASE_DB_URL"],
                "postgres://user:password@host/name",
                &["postgres://", "postgresql://"],
            ),
            authority: self.authority("DATABASE_CA_CERT"),
            max_connections: self.number("DB_POOL_SIZE", 1..=MOST_CONNECTIONS, 10)
                + self.number("DB_MAX_OVERFLOW", 0..=MOST_CONNECTIONS, 0),
            acquire_timeout: self.seconds("DB_POOL_TIMEOUT", 1, 5),
        };
        if config.authority.is_some() {
            // Said outright, so nothing that we should guess the meaning of.
            if last(&config.url, &SSL_MODE).as_deref() == Some("disable") {
                self.problems.push(
                    "DATABASE_CA_CERT is set and DATABASE_URL says sslmode=disable, which asks for no certificate: \
                     take sslmode out of DATABASE_URL (verify-full is used then), or leave DATABASE_CA_CERT out"
                        .to_owned(),
                );
            }
            if last(&config.url, &SSL_ROOT_CERT).is_some() {
                self.problems.push(
                    "DATABASE_CA_CERT is set and DATABASE_URL names another authority: take sslrootcert out of \
                     DATABASE_URL, or leave DATABASE_CA_CERT out"
                        .to_owned(),
                );
            }
        }
        config
    }

    pub(super) fn redis(&mut self) -> RedisConfig {
        let url = self.required_secret(&["REDIS_URL"], "redis://host:6379", &["redis://", "rediss://"]);
        let authority = self.authority("REDIS_CA_CERT");
        let proves = url.expose_secret().starts_with("rediss://") && !is_insecure(&url);
        if authority.is_some() && !proves && !url.expose_secret().is_empty() {
            self.problems.push(
                "REDIS_CA_CERT is set and REDIS_URL asks for no certificate: begin REDIS_URL with rediss:// and take \
                 #insecure out of it, or leave REDIS_CA_CERT out"
                    .to_owned(),
            );
        }
        RedisConfig { url, authority }
    }

    /// Nothing at all counts as not set, as everywhere; blanks and line ends are what is left of a certificate that
    /// was lost on its way, and to go on without it would be to trust anybody.
    fn authority(&mut self, name: &str) -> Option<Authority> {
        let text = (self.lookup)(name).filter(|text| !text.is_empty())?;
        match text.parse() {
            Ok(authority) => Some(authority),
            Err(wrong) => {
                self.problems.push(format!(
                    "{name} is not valid: it {wrong}; it needs certificates in PEM, from -----BEGIN CERTIFICATE----- \
                     to -----END CERTIFICATE-----, with their line ends or \\n for each"
                ));
                None
            }
        }
    }
}

/// How much the address wants to be sure of, in small letters, as whoever connects reads it.
pub(super) fn ssl_mode(url: &SecretString) -> Option<String> {
    last(url, &SSL_MODE)
}

/// The last one counts, as it does for whoever connects.
fn last(url: &SecretString, names: &[&str]) -> Option<String> {
    let url = Url::parse(url.expose_secret()).ok()?;
    url.query_pairs()
        .filter(|(name, _)| names.contains(&name.as_ref()))
        .last()
        .map(|(_, value)| value.to_ascii_lowercase())
}

fn is_insecure(url: &SecretString) -> bool {
    Url::parse(url.expose_secret()).is_ok_and(|url| url.fragment() == Some("insecure"))
}

#[cfg(test)]
mod tests {
    use super::super::{Config, ConfigError, authority::tests::CERTIFICATE};

    fn load(url: &str, redis: &str, pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let all = [&[("DATABASE_URL", url), ("REDIS_URL", redis)], pairs].concat();
        Config::load(&|name| all.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    const DATABASE: &str = "postgres://u:hunter2@localhost/m";

    #[test]
    fn an_authority_that_is_none_is_refused_by_name_and_never_shown() {
        let secret = "-----BEGIN PRIVATE KEY-----\nhunter3\n-----END PRIVATE KEY-----";
        for name in ["DATABASE_CA_CERT", "REDIS_CA_CERT"] {
            for text in ["hunter3", " ", "\\n", "\"\"", "${db.CA_CERT}", secret] {
                let error = load(DATABASE, "rediss://localhost", &[(name, text)]).expect_err(text).to_string();
                assert!(error.starts_with("1 problem(s)") && error.contains(name), "{text:?}: {error}");
                assert!(error.contains("BEGIN CERTIFICATE") && !error.contains("hunter3"), "{text:?}: {error}");
            }
            let unset = load(DATABASE, "redis://localhost", &[(name, "")]).unwrap();
            assert!(unset.database.authority.is_none() && unset.redis.authority.is_none());
        }
    }

    #[test]
    fn an_authority_beside_an_address_that_does_not_ask_it_is_refused() {
        let ca = CERTIFICATE.replace('\n', "\\n");
        for (query, name) in [("sslmode=disable", "sslmode"), ("sslrootcert=/etc/ca.crt", "sslrootcert")] {
            let error = load(&format!("{DATABASE}?{query}"), "redis://localhost", &[("DATABASE_CA_CERT", &ca)]);
            let error = error.expect_err(query).to_string();
            assert!(error.starts_with("1 problem(s)") && error.contains("DATABASE_CA_CERT"), "{error}");
            assert!(error.contains(name) && !error.contains("hunter2"), "{error}");
        }
        for url in ["redis://:hunter2@localhost", "rediss://:hunter2@localhost/#insecure"] {
            let error = load(DATABASE, url, &[("REDIS_CA_CERT", &ca)]).expect_err(url).to_string();
            assert!(error.starts_with("1 problem(s)") && error.contains("REDIS_CA_CERT"), "{error}");
            assert!(error.contains("rediss://") && !error.contains("hunter2"), "{error}");
        }
        load(DATABASE, "rediss://localhost", &[("DATABASE_CA_CERT", &ca), ("REDIS_CA_CERT", &ca)]).unwrap();
    }

    #[test]
    fn whose_word_is_taken_is_said() {
        let ca = [("DATABASE_CA_CERT", CERTIFICATE)];
        for (query, set, said) in [
            ("", &[][..], "not verified"),
            ("?sslmode=require", &[][..], "not verified"),
            ("?sslmode=verify-full", &[][..], "by its name by the public authorities"),
            ("?sslmode=verify-full&sslrootcert=/ca", &[][..], "by its name by sslrootcert"),
            ("", &ca[..], "by its name by DATABASE_CA_CERT"),
            // What a managed database's address says.
            ("?sslmode=require", &ca[..], "by its name by DATABASE_CA_CERT"),
            ("?sslmode=prefer", &ca[..], "by its name by DATABASE_CA_CERT"),
            ("?sslmode=verify-ca", &ca[..], "by any name by DATABASE_CA_CERT"),
        ] {
            let config = load(&format!("{DATABASE}{query}"), "redis://localhost", set).unwrap().database;
            assert!(config.trust().contains(said), "{query}: {}", config.trust());
        }
        let redis = |url, set: &[(&str, &str)]| load(DATABASE, url, set).unwrap().redis.trust();
        assert_eq!(redis("redis://localhost", &[]), "not encrypted");
        assert_eq!(redis("rediss://localhost", &[]), "verified by the public authorities");
        assert_eq!(redis("rediss://localhost/#insecure", &[]), "encrypted, not verified");
        assert_eq!(redis("rediss://localhost", &[("REDIS_CA_CERT", CERTIFICATE)]), "verified by REDIS_CA_CERT");
    }
}
