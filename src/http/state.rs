//! What every handler may use. A domain adds services of its own as further `Data`, not as fields here.

use tokio_util::sync::CancellationToken;

use super::followers::Followers;
use crate::{
    config::Config,
    db::TenantDb,
    identity::{Authenticator, SetupError},
    jobs::Engine,
};

/// Handlers take it as `app: Data<&Arc<App>>`.
#[derive(Debug)]
pub struct App {
    pub config: Config,
    pub db: TenantDb,
    pub engine: Engine,
    pub auth: Authenticator,
    /// Who follows how many jobs by events.
    pub followers: Followers,
    /// Cancelled when the process stops: long polls and event streams end then, and clients come back elsewhere.
    pub stop: CancellationToken,
}

impl App {
    pub fn new(config: Config, db: TenantDb, engine: Engine, stop: CancellationToken) -> Result<Self, SetupError> {
        let auth = Authenticator::new(&config, db.clone())?;
        Ok(Self { config, db, engine, auth, followers: Followers::default(), stop })
    }
}
