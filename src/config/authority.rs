//! The authorities whose word about a server is taken: certificates in PEM, as a variable can hold them.
//!
//! Managed databases give theirs as a variable, and on the way into it line ends often become `\n` letter by letter.
//! Whatever was put there by mistake, a private key for instance, is named by what is wrong with it and never shown.

use std::{fmt, str::FromStr, sync::Arc};

use rustls::{
    RootCertStore,
    pki_types::{
        CertificateDer,
        pem::{self, PemObject, SectionKind},
    },
};

/// One or more certificates that can be trusted, checked when the settings were read.
#[derive(Clone, PartialEq, Eq)]
pub struct Authority {
    pem: Arc<str>,
    certificates: usize,
}

/// What is wrong with a text that should be one. Says nothing of what stands in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoAuthority {
    #[error("holds no certificate")]
    Empty,
    #[error("is cut off, or has lost its line ends")]
    Broken,
    #[error("holds something else than certificates")]
    SomethingElse,
    #[error("holds a certificate that cannot be read")]
    Unreadable,
}

impl Authority {
    /// With real line ends.
    pub fn pem(&self) -> &[u8] {
        self.pem.as_bytes()
    }

    pub fn certificates(&self) -> usize {
        self.certificates
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authority({} certificates)", self.certificates)
    }
}

impl FromStr for Authority {
    type Err = NoAuthority;

    fn from_str(text: &str) -> Result<Self, NoAuthority> {
        // No certificate has a backslash in it, so that these can only have been line ends; and quotes that a file of
        // settings needs, for the spaces, are part of the value where it is read letter by letter (`docker --env-file`).
        let text = text.trim();
        let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
        let text = text.replace("\\r", "\r").replace("\\n", "\n");
        let mut trusted = RootCertStore::empty();
        for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(text.as_bytes()) {
            let (SectionKind::Certificate, der) = section.map_err(NoAuthority::from)? else {
                return Err(NoAuthority::SomethingElse);
            };
            trusted.add(CertificateDer::from(der)).map_err(|_unreadable| NoAuthority::Unreadable)?;
        }
        match trusted.len() {
            // Without its line ends even the first line is none.
            0 if text.contains("-----BEGIN") => Err(NoAuthority::Broken),
            0 => Err(NoAuthority::Empty),
            // Sections of kinds that nobody knows are passed over by who reads them.
            certificates if text.matches("-----BEGIN").count() != certificates => Err(NoAuthority::SomethingElse),
            certificates => Ok(Self { pem: text.into(), certificates }),
        }
    }
}

impl From<pem::Error> for NoAuthority {
    fn from(error: pem::Error) -> Self {
        match error {
            pem::Error::NoItemsFound => Self::Empty,
            pem::Error::Base64Decode(_) => Self::Unreadable,
            _ => Self::Broken,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=authority`; its key was
    /// thrown away.
    pub(in crate::config) const CERTIFICATE: &str = "\
-----BEGIN CERTIFICATE-----
MIIBgDCCASWgAwIBAgIUFI88BuPUGsH3ipjK768n1Dmzr80wCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJYXV0aG9yaXR5MCAXDTI2MTEyNzE1MjgwNFoYDzIxMjYxMTAz
MTUyODA0WjAUMRIwEAYDVQQDDAlhdXRob3JpdHkwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAQAji41uX+R3RR95rkHghe+TSbU4DttXzIJ5FDQoevrQ5Rfx5eLoATc
E/SDWZGwbMO14RVSsol2QuOAeT+6jLhzo1MwUTAdBgNVHQ4EFgQUCVN3BqfgwYsU
iO8ZYrhXVtkG/YAwHwYDVR0jBBgwFoAUCVN3BqfgwYsUiO8ZYrhXVtkG/YAwDwYD
VR0TAQH/BAUwAwEB/zAKBggqhkjOPQQDAgNJADBGAiEAq9V3X7Fo7TbPGyxKMYXd
Mn67fsadiXzB3NgXOQzGlmoCIQD953CoL1+lqIcp0HHQrrtsJW08DEELFdERBxss
kIn1hA==
-----END CERTIFICATE-----
";

    fn read(text: &str) -> Result<usize, NoAuthority> {
        text.parse::<Authority>().map(|authority| authority.certificates())
    }

    #[test]
    fn line_ends_may_be_real_or_spelt_out() {
        for ends in ["\n", "\r\n", "\\n", "\\r\\n"] {
            assert_eq!(read(&CERTIFICATE.replace('\n', ends)), Ok(1), "{ends:?}");
            assert_eq!(read(&format!("\"{}\"", CERTIFICATE.replace('\n', ends))), Ok(1), "{ends:?} in quotes");
            assert_eq!(read(&[CERTIFICATE, CERTIFICATE].concat().replace('\n', ends)), Ok(2), "{ends:?}");
        }
        let authority: Authority = CERTIFICATE.replace('\n', "\\r\\n").parse().unwrap();
        assert_eq!(authority.pem(), CERTIFICATE.replace('\n', "\r\n").as_bytes());
    }

    #[test]
    fn whatever_is_no_certificate_is_refused_and_never_shown() {
        let line = CERTIFICATE.lines().nth(1).unwrap();
        let key = CERTIFICATE.replace("CERTIFICATE", "PRIVATE KEY");
        let unknown = CERTIFICATE.replace("CERTIFICATE", "SPECIAL KEY");
        for (text, wrong) in [
            (" ".to_owned(), NoAuthority::Empty),
            ("\\n".to_owned(), NoAuthority::Empty),
            ("\"\"".to_owned(), NoAuthority::Empty),
            ("hunter2".to_owned(), NoAuthority::Empty),
            (line.to_owned(), NoAuthority::Empty),
            (CERTIFICATE.replace('\n', ""), NoAuthority::Broken),
            (CERTIFICATE.replace('\n', " "), NoAuthority::Broken),
            (CERTIFICATE.replace("-----END CERTIFICATE-----", ""), NoAuthority::Broken),
            (CERTIFICATE.replace(line, "hunter2!"), NoAuthority::Unreadable),
            (CERTIFICATE.replace(line, ""), NoAuthority::Unreadable),
            (key.clone(), NoAuthority::SomethingElse),
            (format!("{CERTIFICATE}{key}"), NoAuthority::SomethingElse),
            (format!("{CERTIFICATE}{unknown}"), NoAuthority::SomethingElse),
        ] {
            assert_eq!(read(&text), Err(wrong), "{text}");
            assert!(!wrong.to_string().contains(line));
        }
        let authority: Authority = CERTIFICATE.parse().unwrap();
        assert_eq!(format!("{authority:?}"), "Authority(1 certificates)");
    }
}
