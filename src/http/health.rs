//! Whether this installation works: for people and alerts (`/health`, everything with its state), for the platform
//! that runs the process (`/health/live`: it answers; `/health/ready`: it can commit).
//!
//! Health cannot lie: each state is looked up when asked, with a deadline, and nothing reports "ok" that was not
//! seen to work. Only names, states and durations are shown, never addresses or errors.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use poem::web::Data;
use poem_openapi::{ApiResponse, Enum, Object, OpenApi, payload::Json};
use tokio::sync::Mutex;

use super::Tag;
use crate::db::TenantDb;

/// Longest one look may take.
const LOOK_TIME: Duration = Duration::from_secs(3);
/// A report is given again this long, so that asking often costs nothing.
const FRESH: Duration = Duration::from_secs(1);

/// Something this installation depends on. A domain brings its own.
#[async_trait]
pub trait Probe: Send + Sync {
    /// Stable, such as `database` or `queue:publish`.
    fn name(&self) -> String;

    /// Whether the whole is unwell when this is.
    fn is_vital(&self) -> bool;

    /// Looks now. The text is for people and public: no addresses, no error of a library.
    async fn look(&self) -> Finding;
}

/// What a look found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub state: ProbeState,
    pub note: Option<String>,
}

impl Finding {
    pub fn ok() -> Self {
        Self { state: ProbeState::Ok, note: None }
    }

    pub fn off(note: impl Into<String>) -> Self {
        Self { state: ProbeState::Off, note: Some(note.into()) }
    }

    pub fn degraded(note: impl Into<String>) -> Self {
        Self { state: ProbeState::Degraded, note: Some(note.into()) }
    }

    pub fn down(note: impl Into<String>) -> Self {
        Self { state: ProbeState::Down, note: Some(note.into()) }
    }

    pub fn noted(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[oai(rename_all = "lowercase")]
pub enum ProbeState {
    /// It was just seen to work.
    Ok,
    /// It works, but not as well as it should.
    Degraded,
    /// It does not work.
    Down,
    /// It is not configured, or excused (a paused queue).
    Off,
}

/// How the installation is.
#[derive(Debug, Clone, Object)]
pub struct HealthReport {
    /// `ok`: everything works. `degraded`: something does not, as `checks` says. Work is taken and kept; that of a queue
    /// that is `down` is done once a worker of it runs. `down`: no work can be taken.
    pub status: ProbeState,
    pub version: String,
    pub checks: Vec<HealthCheck>,
}

#[derive(Debug, Clone, Object)]
#[oai(skip_serializing_if_is_none)]
pub struct HealthCheck {
    pub name: String,
    pub state: ProbeState,
    /// In words.
    pub note: Option<String>,
    /// How long the look took.
    pub took_ms: f64,
}

#[derive(ApiResponse)]
pub enum HealthAnswer {
    /// Work is taken and kept; `checks` says whether all of it is done.
    #[oai(status = 200)]
    Well(Json<HealthReport>),
    /// No work can be taken.
    #[oai(status = 503)]
    Unwell(Json<HealthReport>),
}

/// Answers the health calls.
#[derive(Clone)]
pub struct HealthApi;

pub struct Health {
    db: TenantDb,
    probes: Vec<Box<dyn Probe>>,
    last: Mutex<Option<(Instant, HealthReport)>>,
    ready: Mutex<Option<(Instant, HealthCheck)>>,
}

impl Health {
    pub fn new(db: TenantDb, mut probes: Vec<Box<dyn Probe>>) -> Self {
        probes.insert(0, Box::new(Database { db: db.clone() }));
        Self { db, probes, last: Mutex::new(None), ready: Mutex::new(None) }
    }

    /// Looks at everything, at once.
    pub async fn report(&self) -> HealthReport {
        // Held while looking: whoever asks meanwhile waits for this report instead of looking again.
        let mut last = self.last.lock().await;
        if let Some((_, report)) = last.as_ref().filter(|(seen, _)| seen.elapsed() < FRESH) {
            return report.clone();
        }
        let checks = futures::future::join_all(self.probes.iter().map(|probe| look(probe.as_ref(), LOOK_TIME))).await;
        let status =
            overall(self.probes.iter().map(|probe| probe.is_vital()).zip(checks.iter().map(|check| check.state)));
        let report = HealthReport { status, version: env!("CARGO_PKG_VERSION").into(), checks };
        *last = Some((Instant::now(), report.clone()));
        report
    }

    async fn readiness(&self) -> HealthCheck {
        let mut ready = self.ready.lock().await;
        if let Some((_, check)) = ready.as_ref().filter(|(seen, _)| seen.elapsed() < FRESH) {
            return check.clone();
        }
        let check = look(&Database { db: self.db.clone() }, LOOK_TIME).await;
        *ready = Some((Instant::now(), check.clone()));
        check
    }
}

async fn look(probe: &dyn Probe, limit: Duration) -> HealthCheck {
    let started = Instant::now();
    let finding = tokio::time::timeout(limit, probe.look())
        .await
        .unwrap_or_else(|_elapsed| Finding::down(format!("no answer within {limit:?}")));
    let took_ms = (started.elapsed().as_secs_f64() * 1e4).round() / 10.0;
    HealthCheck { name: probe.name(), state: finding.state, note: finding.note, took_ms }
}

fn overall(states: impl Iterator<Item = (bool, ProbeState)>) -> ProbeState {
    states.fold(ProbeState::Ok, |status, (vital, state)| match (status, state, vital) {
        (ProbeState::Down, ..) | (_, ProbeState::Down, true) => ProbeState::Down,
        (_, ProbeState::Down | ProbeState::Degraded, _) => ProbeState::Degraded,
        (status, ..) => status,
    })
}

/// Whether this process can commit: a read-only or recovering server cannot give out a transaction id.
struct Database {
    db: TenantDb,
}

#[async_trait]
impl Probe for Database {
    fn name(&self) -> String {
        "database".into()
    }

    fn is_vital(&self) -> bool {
        true
    }

    async fn look(&self) -> Finding {
        let id = async {
            let mut db = self.db.nobody().await?;
            sqlx::query_scalar::<_, String>("select pg_current_xact_id()::text").fetch_one(&mut *db).await
        };
        match id.await {
            Ok(_id) => Finding::ok(),
            Err(error) => {
                tracing::warn!(cause = crate::telemetry::chain(&error), "the database cannot commit");
                Finding::down("this process cannot commit")
            }
        }
    }
}

#[OpenApi(tag = "Tag::Service")]
impl HealthApi {
    /// How everything is
    ///
    /// Each dependency and each queue with its state. 503 when no work can be taken; a queue whose jobs nobody does is
    /// `down` among the checks.
    #[oai(path = "/health", method = "get", operation_id = "health")]
    async fn health(&self, health: Data<&Arc<Health>>) -> HealthAnswer {
        let report = health.report().await;
        match report.status {
            ProbeState::Down => HealthAnswer::Unwell(Json(report)),
            _ => HealthAnswer::Well(Json(report)),
        }
    }

    /// The process answers
    ///
    /// Restart it when it does not.
    #[oai(path = "/health/live", method = "get", operation_id = "healthLive")]
    async fn live(&self) -> HealthAnswer {
        HealthAnswer::Well(Json(HealthReport {
            status: ProbeState::Ok,
            version: env!("CARGO_PKG_VERSION").into(),
            checks: Vec::new(),
        }))
    }

    /// This process can commit
    ///
    /// Send it requests only while this is 200.
    #[oai(path = "/health/ready", method = "get", operation_id = "healthReady")]
    async fn ready(&self, health: Data<&Arc<Health>>) -> HealthAnswer {
        let check = health.readiness().await;
        let status = check.state;
        let report = Json(HealthReport { status, version: env!("CARGO_PKG_VERSION").into(), checks: vec![check] });
        if status == ProbeState::Ok { HealthAnswer::Well(report) } else { HealthAnswer::Unwell(report) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_vital_takes_the_whole_down() {
        use ProbeState::{Degraded, Down, Off, Ok};
        let of = |states: &[(bool, ProbeState)]| overall(states.iter().copied());
        assert_eq!(of(&[(true, Ok), (false, Off)]), Ok);
        assert_eq!(of(&[(true, Ok), (false, Down)]), Degraded);
        assert_eq!(of(&[(true, Ok), (false, Degraded)]), Degraded);
        assert_eq!(of(&[(true, Down), (false, Ok)]), Down);
    }

    #[tokio::test]
    async fn a_look_that_hangs_is_reported_as_down() {
        struct Hangs;

        #[async_trait]
        impl Probe for Hangs {
            fn name(&self) -> String {
                "hangs".into()
            }

            fn is_vital(&self) -> bool {
                false
            }

            async fn look(&self) -> Finding {
                std::future::pending().await
            }
        }

        let check = look(&Hangs, Duration::from_millis(5)).await;
        assert_eq!((check.state, check.name.as_str()), (ProbeState::Down, "hangs"));
    }
}
