//! What every handler may use. A domain adds services of its own as further `Data`, not as fields here.

use sqlx::PgPool;

use super::auth::{Authenticator, WeakSecret};
use crate::{config::Config, jobs::Engine};

/// Handlers take it as `app: Data<&Arc<App>>`.
#[derive(Debug)]
pub struct App {
    pub config: Config,
    pub db: PgPool,
    pub engine: Engine,
    pub auth: Authenticator,
}

impl App {
    pub fn new(config: Config, db: PgPool, engine: Engine) -> Result<Self, WeakSecret> {
        let auth = Authenticator::new(config.jwt.as_ref())?;
        Ok(Self { config, db, engine, auth })
    }
}
