//! Encryption at rest for the few columns that are secrets: tokens, upload sessions.
//!
//! XChaCha20-Poly1305 with a random nonce. A ciphertext is bound to the row and column it was made for, so that
//! somebody who can write to the database still cannot move one user's token into another's row. It carries the id
//! of its key, so that keys can be rotated: the first key encrypts, all decrypt ([`crate::rotation`] moves what is
//! kept from one key to the next). Nothing here may ever print a key or a plaintext.

use std::fmt;

use base64::{Engine as _, alphabet, engine};
use chacha20poly1305::{
    Key, XChaCha20Poly1305, XNonce,
    aead::{Aead, Generate, KeyInit, Payload},
};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// The layout of a ciphertext: this byte, the key's id, the nonce, then the encrypted text with its tag.
const VERSION: u8 = 1;
const KEY_BYTES: usize = 32;
const KEY_ID_BYTES: usize = 4;
const NONCE_BYTES: usize = 24;
/// The version and the key's id: enough to tell with which key something was encrypted.
pub const PREFIX_BYTES: usize = 1 + KEY_ID_BYTES;
const HEADER_BYTES: usize = PREFIX_BYTES + NONCE_BYTES;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CryptoError {
    #[error("ENCRYPTION_KEY is not set: it needs 32 random bytes in base64 (openssl rand -base64 32)")]
    NoKey,
    #[error("key {position} of ENCRYPTION_KEY and ENCRYPTION_KEYS_OLD is not base64 of exactly 32 bytes")]
    BadKey { position: usize },
    #[error("the stored secret is not one that this program wrote: connect the account again, or restore its row")]
    Malformed,
    #[error(
        "the stored secret was encrypted with key {key_id}, which is not configured: add that key to ENCRYPTION_KEYS_OLD"
    )]
    UnknownKey { key_id: String },
    #[error(
        "the stored secret was altered, or moved from another row: connect the account again, or restore the row from \
         a backup"
    )]
    Tampered,
}

/// How far a stored secret is on its way to the first key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Current,
    /// Readable, and to be encrypted anew before its key goes.
    Old,
    /// Its key is not configured.
    Unreadable,
}

/// The place a secret is kept at; it can be read back from there only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub table: &'static str,
    pub column: &'static str,
    pub row: Uuid,
}

impl Place {
    pub const fn new(table: &'static str, column: &'static str, row: Uuid) -> Self {
        Self { table, column, row }
    }

    /// Unambiguous: names of tables and columns hold no zero byte.
    fn bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.table.len() + self.column.len() + 18);
        bytes.extend_from_slice(self.table.as_bytes());
        bytes.push(0);
        bytes.extend_from_slice(self.column.as_bytes());
        bytes.push(0);
        bytes.extend_from_slice(self.row.as_bytes());
        bytes
    }
}

/// 256 random bits in base64url: what is only to be known to whoever was told it.
pub fn random_text() -> SecretString {
    engine::general_purpose::URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>()).into()
}

/// What is kept of such a text. Its bits need no slower hash.
pub fn sha256(text: &str) -> [u8; 32] {
    Sha256::digest(text).into()
}

/// All keys of this deployment.
#[derive(Clone)]
pub struct Keyring {
    /// Never empty; the first one encrypts.
    keys: Vec<NamedKey>,
}

#[derive(Clone)]
struct NamedKey {
    id: [u8; KEY_ID_BYTES],
    cipher: XChaCha20Poly1305,
}

impl Keyring {
    /// Keys in base64 (either alphabet, with or without padding), the newest first.
    pub fn new(keys: &[SecretString]) -> Result<Self, CryptoError> {
        let keys: Vec<_> = keys
            .iter()
            .enumerate()
            .map(|(index, text)| NamedKey::parse(text).ok_or(CryptoError::BadKey { position: index + 1 }))
            .collect::<Result<_, _>>()?;
        if keys.is_empty() { Err(CryptoError::NoKey) } else { Ok(Self { keys }) }
    }

    pub fn encrypt(&self, place: Place, secret: &SecretString) -> Vec<u8> {
        let key = &self.keys[0];
        let nonce = XNonce::generate();
        let payload = Payload { msg: secret.expose_secret().as_bytes(), aad: &place.bytes() };
        let sealed = key.cipher.encrypt(&nonce, payload).expect("only a text of 256 GiB cannot be encrypted");
        let mut out = Vec::with_capacity(HEADER_BYTES + sealed.len());
        out.extend_from_slice(&prefix(key.id));
        out.extend_from_slice(&nonce);
        out.extend_from_slice(&sealed);
        out
    }

    /// How everything begins that the first key encrypted; what begins otherwise is to be encrypted anew.
    pub fn current_prefix(&self) -> [u8; PREFIX_BYTES] {
        prefix(self.keys[0].id)
    }

    /// The name of the first key, which tells nothing about it; as [`CryptoError::UnknownKey`] names it.
    pub fn current_id(&self) -> String {
        hex::encode(self.keys[0].id)
    }

    /// The same secret under the first key.
    pub fn reseal(&self, place: Place, stored: &[u8]) -> Result<Vec<u8>, CryptoError> {
        Ok(self.encrypt(place, &self.decrypt(place, stored)?))
    }

    /// Whether what begins like this was encrypted with the first key, with another that is configured, or neither.
    pub fn standing(&self, stored: &[u8]) -> Standing {
        let key = self.keys.iter().position(|key| stored.starts_with(&prefix(key.id)));
        match key {
            Some(0) => Standing::Current,
            Some(_) => Standing::Old,
            None => Standing::Unreadable,
        }
    }

    pub fn decrypt(&self, place: Place, stored: &[u8]) -> Result<SecretString, CryptoError> {
        let (header, sealed) = stored.split_at_checked(HEADER_BYTES).ok_or(CryptoError::Malformed)?;
        let (key_id, nonce) = header[1..].split_at(KEY_ID_BYTES);
        if header[0] != VERSION {
            return Err(CryptoError::Malformed);
        }
        let Some(key) = self.keys.iter().find(|key| key.id == key_id) else {
            return Err(CryptoError::UnknownKey { key_id: hex::encode(key_id) });
        };
        let nonce = XNonce::try_from(nonce).expect("the header was split at the nonce's length");
        let payload = Payload { msg: sealed, aad: &place.bytes() };
        let plain = key.cipher.decrypt(&nonce, payload).map_err(|_| CryptoError::Tampered)?;
        String::from_utf8(plain).map(SecretString::from).map_err(|_| CryptoError::Malformed)
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<_> = self.keys.iter().map(|key| hex::encode(key.id)).collect();
        f.debug_struct("Keyring").field("key_ids", &ids).finish()
    }
}

impl NamedKey {
    fn parse(text: &SecretString) -> Option<Self> {
        let bytes = decode_base64(text.expose_secret())?;
        let key: [u8; KEY_BYTES] = bytes.try_into().ok()?;
        // A key's id must tell nothing about the key: a few bytes of a hash with a prefix of its own.
        let digest = Sha256::new().chain_update(b"multivio key id").chain_update(key).finalize();
        let mut id = [0; KEY_ID_BYTES];
        id.copy_from_slice(&digest[..KEY_ID_BYTES]);
        Some(Self { id, cipher: XChaCha20Poly1305::new(&Key::from(key)) })
    }
}

fn prefix(key_id: [u8; KEY_ID_BYTES]) -> [u8; PREFIX_BYTES] {
    let mut prefix = [VERSION; PREFIX_BYTES];
    prefix[1..].copy_from_slice(&key_id);
    prefix
}

fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let config = engine::GeneralPurposeConfig::new()
        .with_decode_padding_mode(engine::DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(false);
    [&alphabet::STANDARD, &alphabet::URL_SAFE]
        .into_iter()
        .find_map(|alphabet| engine::GeneralPurpose::new(alphabet, config).decode(text.trim()).ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STANDARD: &str = "+/+/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    const URL_SAFE: &str = "-_-_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    const OTHER: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

    fn ring(keys: &[&str]) -> Keyring {
        Keyring::new(&keys.iter().map(|key| SecretString::from(*key)).collect::<Vec<_>>()).unwrap()
    }

    fn place(row: u128) -> Place {
        Place::new("connections", "access_token", Uuid::from_u128(row))
    }

    #[test]
    fn both_base64_alphabets_name_the_same_key() {
        let stored = ring(&[STANDARD]).encrypt(place(1), &"secret".into());
        assert_eq!(ring(&[URL_SAFE]).decrypt(place(1), &stored).unwrap().expose_secret(), "secret");
    }

    #[test]
    fn a_key_that_is_no_key_is_named_by_its_position() {
        let keys = [STANDARD.into(), SecretString::from("hunter2")];
        let error = Keyring::new(&keys).unwrap_err();
        assert_eq!(error, CryptoError::BadKey { position: 2 });
        assert!(!error.to_string().contains("hunter2"));
        assert_eq!(Keyring::new(&[]).unwrap_err(), CryptoError::NoKey);
    }

    #[test]
    fn an_older_key_still_decrypts_and_the_newest_encrypts() {
        let old = ring(&[STANDARD]).encrypt(place(1), &"secret".into());
        let rotated = ring(&[OTHER, STANDARD]);
        assert_eq!(rotated.decrypt(place(1), &old).unwrap().expose_secret(), "secret");
        let new = rotated.encrypt(place(1), &"secret".into());
        assert!(ring(&[OTHER]).decrypt(place(1), &new).is_ok());
    }

    #[test]
    fn what_an_older_key_encrypted_is_encrypted_anew_in_its_place() {
        let (before, between, after) = (ring(&[STANDARD]), ring(&[OTHER, STANDARD]), ring(&[OTHER]));
        let old = before.encrypt(place(1), &"secret".into());
        assert_eq!((between.standing(&old), after.standing(&old)), (Standing::Old, Standing::Unreadable));
        let new = between.reseal(place(1), &old).unwrap();
        assert_eq!(after.standing(&new), Standing::Current);
        assert!(new.starts_with(&after.current_prefix()));
        assert_eq!(after.decrypt(place(1), &new).unwrap().expose_secret(), "secret");
        assert_eq!(after.reseal(place(2), &new).unwrap_err(), CryptoError::Tampered, "it stays bound to its row");
    }

    #[test]
    fn a_missing_key_is_named_by_its_id_and_the_remedy_told() {
        let stored = ring(&[STANDARD]).encrypt(place(1), &"secret".into());
        let error = ring(&[OTHER]).decrypt(place(1), &stored).unwrap_err();
        assert!(matches!(error, CryptoError::UnknownKey { .. }));
        assert!(error.to_string().contains("ENCRYPTION_KEYS_OLD"));
    }

    #[test]
    fn a_secret_cannot_be_moved_to_another_row_or_column() {
        let ring = ring(&[STANDARD]);
        let stored = ring.encrypt(place(1), &"secret".into());
        assert_eq!(ring.decrypt(place(2), &stored).unwrap_err(), CryptoError::Tampered);
        let column = Place { column: "refresh_token", ..place(1) };
        assert_eq!(ring.decrypt(column, &stored).unwrap_err(), CryptoError::Tampered);
    }

    #[test]
    fn the_same_secret_never_looks_the_same_twice() {
        let ring = ring(&[STANDARD]);
        assert_ne!(ring.encrypt(place(1), &"secret".into()), ring.encrypt(place(1), &"secret".into()));
    }

    #[test]
    fn neither_keys_nor_secrets_can_be_printed() {
        let printed = format!("{:?}", ring(&[STANDARD]));
        assert!(!printed.contains(STANDARD) && !printed.contains("251, 255"), "{printed}");
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(text in ".*") {
            let ring = ring(&[OTHER]);
            let stored = ring.encrypt(place(7), &text.clone().into());
            let back = ring.decrypt(place(7), &stored).unwrap();
            prop_assert_eq!(back.expose_secret(), text);
        }

        #[test]
        fn any_altered_byte_is_noticed(text in ".{0,40}", at in any::<prop::sample::Index>(), bit in 0..8u32) {
            let ring = ring(&[OTHER]);
            let mut stored = ring.encrypt(place(7), &text.into());
            let at = at.index(stored.len());
            stored[at] ^= 1 << bit;
            prop_assert!(ring.decrypt(place(7), &stored).is_err());
        }

        #[test]
        fn garbage_is_refused_and_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            prop_assert!(ring(&[OTHER]).decrypt(place(7), &bytes).is_err());
        }
    }
}
