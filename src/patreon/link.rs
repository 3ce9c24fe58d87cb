//! What binds a linking to whoever began it: a state that Patreon hands back, and a secret that never leaves their
//! browser until the end (as RFC 7636 has it, checked here because Patreon does not).

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;

use crate::crypto::sha256;

/// `code_challenge`: the SHA-256 of the verifier in base64url.
pub fn challenge(text: &str) -> Option<[u8; 32]> {
    URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()
}

pub fn fits(verifier: &SecretString, challenge: &[u8]) -> bool {
    let verifier = verifier.expose_secret();
    let is_verifier = (43..=128).contains(&verifier.len());
    let is_same: bool = sha256(verifier).ct_eq(challenge).into();
    is_verifier && is_same
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verifier_fits_its_own_challenge_alone() {
        // The pair of RFC 7636, appendix B.
        let challenge = challenge("E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM").unwrap();
        let fits = |verifier: &str| fits(&verifier.into(), &challenge);
        assert!(fits("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"));
        assert!(!fits("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXl"));
        assert!(!fits(""));
    }

    #[test]
    fn what_is_no_sha_256_is_no_challenge() {
        for text in
            ["", "abc", "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM=", "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw+cM"]
        {
            assert_eq!(challenge(text), None, "{text}");
        }
    }
}
