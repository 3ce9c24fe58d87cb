//! RSA keys as Google has them, and the signatures that honest and dishonest people make with them.

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use rsa::{
    RsaPrivateKey, pkcs1::EncodeRsaPrivateKey, pkcs8::EncodePublicKey, rand_core::OsRng, traits::PublicKeyParts,
};
use serde_json::{Value, json};

const BITS: usize = 2048;

pub struct SigningKey {
    pub kid: String,
    private: RsaPrivateKey,
}

impl SigningKey {
    pub fn generate() -> Self {
        let private = RsaPrivateKey::new(&mut OsRng, BITS).expect("2048 bits are a size that keys have");
        Self { kid: hex::encode(rand::random::<[u8; 20]>()), private }
    }

    /// 2.1.
    pub fn jwk(&self) -> Value {
        let number = |number: Vec<u8>| URL_SAFE_NO_PAD.encode(number);
        json!({
            "kid": self.kid, "kty": "RSA", "alg": "RS256", "use": "sig",
            "n": number(self.private.n().to_bytes_be()), "e": number(self.private.e().to_bytes_be()),
        })
    }

    pub fn rs256(&self, message: &str) -> String {
        let der = self.private.to_pkcs1_der().expect("a key can be written");
        let key = EncodingKey::from_rsa_der(der.as_bytes());
        crypto::sign(message.as_bytes(), &key, Algorithm::RS256).expect("an RSA key signs")
    }

    /// The public key taken for a shared secret: what a verifier falls for that lets the token choose.
    pub fn hs256(&self, message: &str) -> String {
        let key = EncodingKey::from_secret(self.public_pem().as_bytes());
        crypto::sign(message.as_bytes(), &key, Algorithm::HS256).expect("any bytes sign")
    }

    fn public_pem(&self) -> String {
        let der = self.private.to_public_key().to_public_key_der().expect("a key can be written");
        let text = STANDARD.encode(der.as_bytes());
        let lines: Vec<&str> = text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n"))
    }
}
