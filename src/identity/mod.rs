//! Who is calling, and what they may do. A credential becomes a [`Caller`] in one place, [`Authenticator`]; nothing
//! else of the product looks at a credential, and none may reach a log or an error.
//!
//! A caller is always *in* one workspace, whose id is the tenant of every row the call may touch.

pub mod api;
pub mod api_keys;
pub mod authenticator;
mod barred;
pub mod caller;
pub mod firebase;
mod firebase_keys;
mod health;
pub mod key_api;
mod key_store;
pub mod local_tokens;
mod recent;
mod seen_tokens;
pub mod store;

pub use api_keys::ApiKey;
pub use authenticator::{AuthError, Authenticator, SetupError};
pub use caller::{Caller, Forbidden, Reach, Role, Scope, Scopes};
pub use local_tokens::{LocalTokens, WeakSecret};
