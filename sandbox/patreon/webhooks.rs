//! Events: signed, one after the other; after a failure none until somebody says so, and then all that waited, in order
//! or, as nothing promises an order, at once.

use std::{collections::VecDeque, sync::OnceLock, time::Duration};

use hmac::{Hmac, KeyInit, Mac};
use md5::Md5;
use serde::Serialize;

use super::{Patreon, Settings};

const DEADLINE: Duration = Duration::from_secs(5);

#[derive(Default)]
pub struct Hook {
    pub paused: bool,
    /// One sender at a time, so that events arrive in order.
    sending: bool,
    backlog: VecDeque<Event>,
    pub deliveries: Vec<Delivery>,
}

#[derive(Clone)]
struct Event {
    trigger: String,
    body: String,
}

/// How one sending ended.
#[derive(Clone, Serialize)]
pub struct Delivery {
    pub trigger: String,
    /// `None`: nobody answered.
    pub status: Option<u16>,
}

impl Hook {
    pub fn waiting(&self) -> usize {
        self.backlog.len()
    }
}

impl Patreon {
    /// Sends an event as soon as those before it are out.
    pub fn fire(&self, trigger: &str, body: String) {
        let mut world = self.world();
        if world.settings.webhook_uri.is_some() {
            world.hook.backlog.push_back(Event { trigger: String::from(trigger), body });
        }
        drop(world);
        self.send_backlog();
    }

    pub fn send_backlog(&self) {
        let mut world = self.world();
        if world.hook.paused || world.hook.sending || world.hook.backlog.is_empty() {
            return;
        }
        world.hook.sending = true;
        drop(world);
        let twin = self.clone();
        tokio::spawn(async move { while twin.send_next().await {} });
    }

    async fn send_next(&self) -> bool {
        let (event, settings) = {
            let mut world = self.world();
            let next = if world.hook.paused { None } else { world.hook.backlog.front().cloned() };
            let Some(event) = next else {
                world.hook.sending = false;
                return false;
            };
            (event, world.settings.clone())
        };
        if self.deliver(&event, &settings).await {
            self.world().hook.backlog.pop_front();
        }
        true
    }

    /// Sends what waits, all of it at the same time and the newest first. What nobody takes waits again.
    pub fn send_backlog_at_once(&self) {
        let (waiting, settings) = {
            let mut world = self.world();
            // The first one may be on its way already.
            let under_way = usize::from(world.hook.sending).min(world.hook.backlog.len());
            (world.hook.backlog.split_off(under_way), world.settings.clone())
        };
        for event in waiting.into_iter().rev() {
            let (twin, settings) = (self.clone(), settings.clone());
            tokio::spawn(async move {
                if !twin.deliver(&event, &settings).await {
                    twin.world().hook.backlog.push_back(event);
                }
            });
        }
    }

    /// Whether it was taken; if not, no more are sent.
    async fn deliver(&self, event: &Event, settings: &Settings) -> bool {
        let request = client().post(settings.webhook_uri.clone().unwrap_or_default()).timeout(DEADLINE);
        let request = request
            .header("content-type", "application/json")
            .header("x-patreon-event", &event.trigger)
            .header("x-patreon-signature", signature(&settings.webhook_secret, &event.body))
            .body(event.body.clone());
        let status = request.send().await.ok().map(|response| response.status().as_u16());
        let is_taken = status.is_some_and(|status| (200..300).contains(&status));
        let mut world = self.world();
        world.hook.deliveries.push(Delivery { trigger: event.trigger.clone(), status });
        world.hook.paused |= !is_taken;
        is_taken
    }
}

fn signature(secret: &str, body: &str) -> String {
    let mut mac = Hmac::<Md5>::new_from_slice(secret.as_bytes()).expect("a key of any length will do");
    mac.update(body.as_bytes());
    hex::encode(mac.finalize().into_bytes())
}

fn client() -> &'static reqwest::Client {
    static CLIENT: OnceLock<reqwest::Client> = OnceLock::new();
    CLIENT.get_or_init(|| {
        // An error means that somebody else has chosen one already.
        let _chosen = rustls::crypto::ring::default_provider().install_default();
        reqwest::Client::builder().no_proxy().build().expect("a client without special wishes can be built")
    })
}
