//! Runs the jobs of the `ops` queue: tokens, webhooks, mail, imports, upkeep, each in a lane of its own.

use std::{process::ExitCode, sync::Arc};

use multivio::{
    ai::{AiUpkeep, Transformer},
    audit::AuditRetention,
    connections::{Accounts, GiveBackTokens, RefreshToken},
    crypto::Keyring,
    jobs::{Queue, Registry},
    media::{Import, MediaService, MediaUpkeep},
    outbound::{self, fetch::Fetcher},
    patreon::{Patreon, PatreonUpkeep, ReadMembership},
    platforms::Connectors,
    rights::{Erase, Export, RightsUpkeep},
    worker,
};

fn main() -> ExitCode {
    worker::main(Queue::Ops, 8, |config, db| {
        let client = outbound::client()?;
        let keyring = Keyring::new(&config.encryption_keys)?;
        let accounts = Accounts::new(keyring.clone(), Connectors::new(config, &client));
        // What an export was writing is somebody's data: it does not stay behind a crash.
        let media = MediaService::new(config, db)?;
        media.sweep_scratch();
        let patreon = config.patreon.as_ref().map(|patreon| Patreon::new(patreon, client, keyring));
        Ok(Registry::of(Queue::Ops)
            .job::<RefreshToken>()
            .job::<GiveBackTokens>()
            .job::<Import>()
            .job::<Erase>()
            .job::<Export>()
            .job::<ReadMembership>()
            .service(Arc::new(accounts))
            .service(Arc::new(patreon))
            .service(Arc::new(Transformer::new(&config.ai)?))
            .service(Arc::new(Fetcher::new(config.media.import_loopback_port)?))
            .service(Arc::new(media))
            .upkeep("ai-upkeep", "*/5 * * * *", &AiUpkeep {})
            .upkeep("media-upkeep", "7 * * * *", &MediaUpkeep {})
            .upkeep("rights-upkeep", "27 * * * *", &RightsUpkeep {})
            .upkeep("patreon-upkeep", "*/15 * * * *", &PatreonUpkeep {})
            .upkeep("audit-retention", "17 * * * *", &AuditRetention {}))
    })
}
