//! The relay: one elected loop, in any worker or API process, that moves due jobs to the belt, keeps the belt's
//! window filled, rescues what was lost, fires schedules and forgets what is old.
//!
//! It takes no input but the ledger and the belt, and everything it does is safe to do twice, so two leaders at
//! once do no harm (E3).

mod audit;
mod cron;
mod forget;
mod window;

use std::time::Duration;

use sqlx::{Acquire, PgConnection, PgPool};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use uuid::Uuid;

pub use self::cron::{CatchUp, Schedule, ScheduleError, Timetable, next as next_fire, unique_key};
use self::{audit::Audit, window::Windows};
use super::{
    Engine, canary,
    heart::LEASE,
    ledger::{self, Due, Group, Leadership},
};
use crate::{
    db::{OwnConnection, Session},
    ids::JobId,
    telemetry::chain,
};

/// How long a leader leads without renewing; another leads at most this and a round later.
const LEADS_FOR: Duration = Duration::from_secs(4);
const RENEW_EVERY: Duration = Duration::from_secs(1);
/// A round while nothing rings.
const ROUND: Duration = Duration::from_millis(100);
/// Shortest time from the start of one round to the next that a bell asks for: while jobs are enqueued by the
/// thousand, each batch of them rings.
const BETWEEN_BELLS: Duration = Duration::from_millis(25);
/// A round while more waits than fits on the belt.
const BUSY_ROUND: Duration = Duration::from_millis(25);
const AUDIT_EVERY: Duration = Duration::from_secs(2);
/// Rows one statement moves.
const BATCH: i64 = 1_000;
/// Lanes and tenants that one round looks at while a crowd is due.
const GROUPS: i64 = 1_000;
/// Serial orders, or due rows of such, that one round looks at.
const SERIAL: i64 = 250;
/// Waiting jobs looked after each second.
const SWEEP: i64 = 2_000;

/// Runs until `stop`; outages are waited out. Its rounds have a connection of this `session` to themselves, what is
/// beside them one of `db`.
pub async fn run(engine: Engine, session: Session, db: PgPool, stop: CancellationToken) {
    let (leads, is_leading) = watch::channel(false);
    let forgetting = tokio::spawn(forget::run(db.clone(), is_leading, stop.clone()));
    let own = OwnConnection::new(session);
    let mut relay = Relay::new(engine);
    while !stop.is_cancelled() {
        let began = Instant::now();
        let pause = match own.run(async |db: &mut PgConnection| relay.round(db).await).await {
            Ok(pause) => pause,
            Err(error) => {
                warn!(error = %chain(&error), "a round of the relay failed");
                RENEW_EVERY
            }
        };
        leads.send_if_modified(|leads| std::mem::replace(leads, relay.leading.is_some()) != relay.leading.is_some());
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = async {
                relay.engine.hub().bell().await;
                tokio::time::sleep_until(began + BETWEEN_BELLS).await;
            }, if relay.leading.is_some() && pause <= ROUND => {}
            () = stop.cancelled() => {}
        }
    }
    if relay.leading.is_some() {
        let _ended = tokio::time::timeout(Duration::from_secs(1), ledger::step_down(&db, relay.me)).await;
    }
    let _ended = tokio::time::timeout(Duration::from_secs(1), forgetting).await;
}

struct Relay {
    me: Uuid,
    engine: Engine,
    leading: Option<Leadership>,
    /// It has just begun to lead: each queue gets a canary now.
    owes_canaries: bool,
    windows: Windows,
    audit: Audit,
    /// More is due than one batch: the tenants take turns.
    crowd: bool,
    /// Where the turns have come to.
    turn: Option<Group>,
    /// More serial jobs are due than one look sees.
    serial_crowd: bool,
    /// Which serial orders were looked at.
    serial_order: Option<String>,
    /// Which waiting jobs were looked after.
    swept: Option<Uuid>,
    /// A step of this round failed; the others went on.
    is_troubled: bool,
    /// Nobody's lease counts as over before this: after an outage the living need time to say so (E12).
    reap_from: Instant,
    healthy_at: Instant,
    renewed_at: Option<Instant>,
    audited_at: Instant,
}

impl Relay {
    fn new(engine: Engine) -> Self {
        let now = Instant::now();
        Self {
            me: Uuid::new_v4(),
            engine,
            leading: None,
            owes_canaries: false,
            windows: Windows::default(),
            audit: Audit::default(),
            crowd: false,
            turn: None,
            serial_crowd: false,
            serial_order: None,
            swept: None,
            is_troubled: false,
            reap_from: now,
            healthy_at: now,
            renewed_at: None,
            audited_at: now,
        }
    }

    /// One round; returns how long to wait for the next.
    async fn round(&mut self, db: &mut PgConnection) -> sqlx::Result<Duration> {
        let slow = self.renewed_at.is_none_or(|at| at.elapsed() >= RENEW_EVERY);
        if slow {
            self.renewed_at = Some(Instant::now());
            self.lead(db).await?;
        }
        if self.leading.is_none() {
            return Ok(RENEW_EVERY);
        }
        if self.healthy_at.elapsed() > LEADS_FOR {
            self.grant_a_lease("the database was away");
        }
        self.is_troubled = false;
        let belt_is_there = self.keep_the_belt(db).await?;
        // On a belt that is not built anew a moment later.
        if std::mem::take(&mut self.owes_canaries)
            && let Err(error) = canary::send_all(&self.engine).await
        {
            debug!(error = %chain(&error), "the first canaries come with the schedule");
        }
        self.promote(db, slow, belt_is_there).await?;
        let filled = if belt_is_there { self.windows.fill(db, self.engine.belt()).await } else { Ok(false) };
        let more_waits = self.step("filling the belt", filled)?.unwrap_or(false);
        if slow {
            self.rescue(db).await?;
            let fired = cron::fire_due(db, &self.engine).await;
            self.step("firing schedules", fired)?;
        }
        if belt_is_there && self.audited_at.elapsed() >= AUDIT_EVERY {
            self.audited_at = Instant::now();
            let audited = self.audit.run(db, self.engine.belt(), &self.windows).await;
            self.step("the audit", audited)?;
        }
        self.healthy_at = Instant::now();
        let is_busy = more_waits || self.crowd || self.serial_crowd;
        Ok(if self.is_troubled {
            RENEW_EVERY
        } else if is_busy {
            BUSY_ROUND
        } else {
            ROUND
        })
    }

    /// What one step of a round came to. A statement that Postgres refuses, or that takes too long, is the fault of that
    /// step alone, and the others go on; without a server there is no next step.
    fn step<T>(&mut self, what: &str, result: sqlx::Result<T>) -> sqlx::Result<Option<T>> {
        match result {
            Ok(done) => Ok(Some(done)),
            Err(error @ sqlx::Error::Database(_)) => {
                warn!(step = what, error = %chain(&error), "a step of the relay failed");
                self.is_troubled = true;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn lead(&mut self, db: &mut PgConnection) -> sqlx::Result<()> {
        let now = ledger::lead(&mut *db, self.me, LEADS_FOR).await?;
        let before = self.leading.map(|leadership| leadership.epoch);
        match now {
            Some(leadership) if before != Some(leadership.epoch) => {
                info!(epoch = leadership.epoch, "leads the relay");
                self.windows = Windows::default();
                self.audit = Audit::default();
                self.windows.learn_what_is_there(self.engine.belt()).await;
                if let Err(error) = canary::schedule_all(db).await {
                    warn!(error = %chain(&error), "the canaries have no schedule");
                }
                self.owes_canaries = true;
                self.healthy_at = Instant::now();
                // The former leader was heard a moment ago, so the database was there for heartbeats too.
                if leadership.vacant + LEADS_FOR > LEASE.saturating_sub(RENEW_EVERY * 2) {
                    self.grant_a_lease("nobody had led for a while");
                }
            }
            None if before.is_some() => info!("another process leads the relay"),
            _ => {}
        }
        self.leading = now;
        Ok(())
    }

    fn grant_a_lease(&mut self, why: &str) {
        debug!(why, "everybody is granted one lease");
        self.reap_from = Instant::now() + LEASE;
        self.healthy_at = Instant::now();
    }

    /// `false`: Redis is away. Builds the belt anew when Redis was emptied or replaced (E6).
    async fn keep_the_belt(&mut self, db: &mut PgConnection) -> sqlx::Result<bool> {
        let Some(leadership) = &mut self.leading else { return Ok(false) };
        match self.engine.belt().epoch().await {
            Ok(Some(epoch)) if epoch == leadership.belt_epoch => return Ok(true),
            Ok(_) => {}
            Err(error) => {
                debug!(error = %chain(&error), "no belt");
                return Ok(false);
            }
        }
        let epoch = Uuid::new_v4();
        if !ledger::set_belt_epoch(db, self.me, epoch).await? {
            return Ok(false);
        }
        leadership.belt_epoch = epoch;
        self.windows = Windows::default();
        match self.engine.belt().start_anew(epoch).await {
            Ok(()) => {
                info!("the belt is built anew");
                // What its makers had pushed is gone too: the audit finds it at its next two looks.
                self.audit.forget();
                self.audited_at = Instant::now().checked_sub(AUDIT_EVERY).unwrap_or_else(Instant::now);
                Ok(true)
            }
            Err(error) => {
                debug!(error = %chain(&error), "the belt could not be built");
                Ok(false)
            }
        }
    }

    async fn promote(&mut self, db: &mut PgConnection, slow: bool, belt_is_there: bool) -> sqlx::Result<()> {
        let due = self.promote_due(db, belt_is_there).await;
        self.step("promoting", due)?;
        let due = ledger::promote_serial(&mut *db, SERIAL).await;
        if let Some((due, more)) = self.step("promoting serial jobs", due)? {
            self.serial_crowd = more;
            self.push(&due, belt_is_there).await;
        }
        if slow || self.serial_crowd {
            let due = ledger::promote_serial_orders(&mut *db, self.serial_order.as_deref(), SERIAL).await;
            if let Some((due, next)) = self.step("promoting serial orders", due)? {
                self.serial_order = next;
                self.push(&due, belt_is_there).await;
            }
        }
        Ok(())
    }

    async fn promote_due(&mut self, db: &mut PgConnection, belt_is_there: bool) -> sqlx::Result<()> {
        let push = belt_is_there && !self.crowd && self.windows.have_room();
        // In a crowd one half goes by age, so that there is an end, and one by turns.
        let limit = if self.crowd { BATCH / 2 } else { BATCH };
        let due = ledger::promote_due(&mut *db, limit, push).await?;
        if push {
            self.push(&due, belt_is_there).await;
        }
        if self.crowd {
            let (_, next) = ledger::promote_due_by_turns(&mut *db, self.turn.as_ref(), GROUPS, limit).await?;
            self.turn = next;
        }
        self.crowd = i64::try_from(due.moved).unwrap_or(i64::MAX) >= limit;
        Ok(())
    }

    async fn push(&self, due: &Due, belt_is_there: bool) {
        if due.runnable.is_empty() || !belt_is_there {
            return;
        }
        if let Err(error) = self.engine.belt().push(&due.runnable).await {
            debug!(error = %chain(&error), "the audit pushes them again");
        }
    }

    async fn rescue(&mut self, db: &mut PgConnection) -> sqlx::Result<()> {
        while Instant::now() >= self.reap_from {
            let rescued = ledger::reap(&mut *db, BATCH).await;
            let Some(rescued) = self.step("reaping", rescued)?.filter(|rescued| !rescued.is_empty()) else { break };
            info!(jobs = rescued.len(), "taken back from workers that are gone");
            // They are suspects now, whom the audit brings to the belt: in this very round.
            self.audited_at = self.audited_at.checked_sub(AUDIT_EVERY).unwrap_or(self.audited_at);
            let ended: Vec<JobId> =
                rescued.iter().filter(|row| row.ended && row.has_children).map(|row| row.job).collect();
            let released = self.engine.release(ended).await;
            self.step("releasing", released)?;
        }
        let woken = ledger::sweep_wakes(&mut *db).await;
        self.step("sweeping wakes", woken)?;
        let swept = ledger::sweep_waiting(&mut *db, self.swept, SWEEP).await;
        if let Some((_, next)) = self.step("sweeping waiting jobs", swept)? {
            self.swept = next;
        }
        Ok(())
    }
}

/// A transaction on a connection that is already held.
async fn begin(db: &mut PgConnection) -> sqlx::Result<sqlx::Transaction<'_, sqlx::Postgres>> {
    db.begin().await
}
