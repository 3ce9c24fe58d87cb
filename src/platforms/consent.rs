//! How an account's owner allows this product to act for them: OAuth 2.0 with PKCE, in the words of every platform.

use secrecy::SecretString;
use url::Url;

/// What goes to the platform's page with the owner.
pub struct Asking<'a> {
    /// Comes back with the answer, unchanged: it binds the two together.
    pub state: &'a SecretString,
    /// The hash of the verifier that only we have.
    pub challenge: &'a str,
}

/// What came back with the owner, to be traded for tokens.
pub struct Grant<'a> {
    pub code: &'a SecretString,
    pub verifier: &'a SecretString,
}

/// Where this installation's owners are sent, and where the platform sends them back to: settings, never a request's.
#[derive(Debug, Clone)]
pub struct Pages {
    pub authorize: Url,
    pub callback: String,
}

/// Whose account some tokens are for, as the platform says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    pub remote_id: String,
    pub username: String,
    pub display_name: String,
}
