//! The state machine under random sequences of ledger operations: no path loses or doubles a job, and every
//! transition is one that its operation may make.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use multivio::{
    ids::{JobId, WorkerId},
    jobs::{
        Lane, NewJob, OnParent, Queue, State, Why,
        ledger::{self, Again, End, Settlement},
    },
};
use proptest::prelude::*;
use serde_json::Value;
use sqlx::PgConnection;

use super::{Act, Stage, stage::paper_worker};
use crate::harness::full_size;

const LEASE: Duration = Duration::from_secs(3_600);

#[derive(Debug, Clone)]
enum Op {
    Enqueue {
        parents: Vec<usize>,
        dooms: bool,
        serial: Option<u8>,
        unique: Option<u8>,
        later: bool,
    },
    Promote,
    Sweep,
    Claim {
        worker: usize,
        limit: usize,
    },
    Settle {
        which: usize,
        how: How,
    },
    /// The same end once more, after an answer that was lost.
    SettleAgain {
        which: usize,
        how: How,
    },
    Cancel {
        which: usize,
    },
    Retry {
        which: usize,
    },
    /// A worker dies, and the relay notices.
    Die {
        worker: usize,
    },
    /// The answer to its last claim was lost: it holds nothing.
    Forget {
        worker: usize,
    },
    Wake,
}

#[derive(Debug, Clone, Copy)]
enum How {
    Succeed,
    Fail,
    Retry,
    Snooze,
    Park,
    HandBack,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let how = prop_oneof![
        4 => Just(How::Succeed),
        1 => Just(How::Fail),
        1 => Just(How::Retry),
        1 => Just(How::Snooze),
        1 => Just(How::Park),
        1 => Just(How::HandBack),
    ];
    let enqueue = (
        prop::collection::vec(0..64_usize, 0..3),
        any::<bool>(),
        prop::option::weighted(0.3, 0..2_u8),
        prop::option::weighted(0.2, 0..3_u8),
        prop::bool::weighted(0.2),
    );
    let op = prop_oneof![
        6 => enqueue.prop_map(|(parents, dooms, serial, unique, later)| Op::Enqueue { parents, dooms, serial, unique, later }),
        4 => Just(Op::Promote),
        1 => Just(Op::Sweep),
        4 => (0..2_usize, 1..4_usize).prop_map(|(worker, limit)| Op::Claim { worker, limit }),
        6 => (0..64_usize, how.clone()).prop_map(|(which, how)| Op::Settle { which, how }),
        1 => (0..64_usize, how).prop_map(|(which, how)| Op::SettleAgain { which, how }),
        1 => (0..64_usize).prop_map(|which| Op::Cancel { which }),
        1 => (0..64_usize).prop_map(|which| Op::Retry { which }),
        1 => (0..2_usize).prop_map(|worker| Op::Die { worker }),
        1 => (0..2_usize).prop_map(|worker| Op::Forget { worker }),
        1 => Just(Op::Wake),
    ];
    prop::collection::vec(op, 1..50)
}

type Snapshot = BTreeMap<JobId, (State, i32, Option<WorkerId>)>;

struct Model<'a> {
    stage: &'a Stage,
    db: PgConnection,
    workers: Vec<WorkerId>,
    jobs: Vec<JobId>,
    /// Who holds what, by what the claims answered.
    held: HashMap<JobId, (WorkerId, i32)>,
    /// Those of them whose next failed attempt is their last, which a worker says of itself.
    last_tries: HashSet<JobId>,
    /// Pairs that were settled or taken away: they count for nothing any more.
    stale: Vec<(JobId, i32)>,
    before: Snapshot,
}

impl Model<'_> {
    async fn apply(&mut self, op: &Op) -> Result<(), TestCaseError> {
        use State::{Cancelled, Failed, Queued, Running, Scheduled, Succeeded, Waiting};
        const FREED: [(State, State); 3] = [(Waiting, Queued), (Waiting, Scheduled), (Waiting, Cancelled)];
        let allowed: Vec<(State, State)> = match op {
            Op::Enqueue { parents, dooms, serial, unique, later } => {
                self.enqueue(parents, *dooms, *serial, *unique, *later).await?;
                vec![]
            }
            Op::Promote => {
                ledger::promote_serial(&mut self.db, 2).await.unwrap();
                ledger::promote_serial_orders(&mut self.db, None, 10).await.unwrap();
                ledger::promote_due(&mut self.db, 10, true).await.unwrap();
                vec![(Scheduled, Queued)]
            }
            Op::Sweep => {
                ledger::sweep_waiting(&mut self.db, None, 100).await.unwrap();
                vec![(Waiting, Scheduled), (Waiting, Cancelled)]
            }
            Op::Claim { worker, limit } => {
                self.claim(*worker, *limit).await?;
                vec![(Queued, Running)]
            }
            Op::Settle { which, how } => {
                let Some((job, run)) = self.nth_held(*which) else { return Ok(()) };
                let how = match how {
                    How::Retry if self.last_tries.contains(&job) => How::Fail,
                    how => *how,
                };
                let freed = ledger::settle(&mut self.db, &[settlement(job, run, how)]).await.unwrap();
                prop_assert_eq!(freed.settled.len(), 1);
                self.held.remove(&job);
                self.stale.push((job, run));
                self.release(freed.cancelled_parents).await;
                let to = match how {
                    How::Succeed => Succeeded,
                    How::Fail => Failed,
                    How::HandBack => Queued,
                    How::Retry | How::Snooze | How::Park => Scheduled,
                };
                [&FREED[..], &[(Running, to), (Running, Cancelled)]].concat()
            }
            Op::SettleAgain { which, how } => {
                let Some((job, run)) = self.stale.get(which % self.stale.len().max(1)).copied() else { return Ok(()) };
                let freed = ledger::settle(&mut self.db, &[settlement(job, run, *how)]).await.unwrap();
                prop_assert!(freed.settled.is_empty() && freed.runnable.is_empty(), "a run was settled twice");
                vec![]
            }
            Op::Cancel { which } => {
                let Some(job) = self.nth(*which) else { return Ok(()) };
                let outcome = ledger::cancel(&mut self.db, None, job, "operator").await.unwrap();
                if outcome == ledger::CancelOutcome::Cancelled {
                    self.release(vec![job]).await;
                }
                [&FREED[..], &[(Waiting, Cancelled), (Scheduled, Cancelled), (Queued, Cancelled)]].concat()
            }
            Op::Retry { which } => {
                let Some(job) = self.nth(*which) else { return Ok(()) };
                ledger::request_retry(&mut self.db, None, job, "operator").await.unwrap();
                vec![(Failed, Scheduled), (Cancelled, Scheduled), (Failed, Waiting), (Cancelled, Waiting)]
            }
            Op::Die { worker } => {
                self.die(*worker).await?;
                [&FREED[..], &[(Running, Queued), (Running, Failed), (Running, Cancelled)]].concat()
            }
            Op::Forget { worker } => {
                let me = self.workers[*worker];
                let strays = ledger::hand_back_strays(&mut self.db, me, &[], Duration::ZERO).await.unwrap();
                let gone = self.take_from(me);
                prop_assert_eq!(usize::try_from(strays).unwrap(), gone);
                vec![(Running, Queued), (Running, Cancelled)]
            }
            Op::Wake => {
                ledger::wake(&mut self.db, "event").await.unwrap();
                vec![]
            }
        };
        self.check(op, &allowed).await
    }

    async fn enqueue(
        &mut self,
        parents: &[usize],
        dooms: bool,
        serial: Option<u8>,
        unique: Option<u8>,
        later: bool,
    ) -> Result<(), TestCaseError> {
        let mut job = self.stage.job(Act::default());
        job.max_attempts = 3;
        job.serial_key = serial.map(|key| format!("s{key}"));
        job.unique_key = unique.map(|key| format!("u{key}"));
        job.run_at = later.then(|| chrono::Utc::now() + Duration::from_millis(5));
        let on_parent = if dooms { OnParent::Cancel } else { OnParent::Run };
        job.parents = parents.iter().filter_map(|which| Some((self.nth(*which)?, on_parent))).collect();
        if self.insert(&job).await {
            self.jobs.push(job.id);
        } else {
            prop_assert!(unique.is_some(), "only a unique key keeps a job out");
        }
        Ok(())
    }

    async fn insert(&mut self, job: &NewJob) -> bool {
        use sqlx::Connection;
        let mut tx = self.db.begin().await.unwrap();
        let entered = if job.parents.is_empty() {
            let rows = [ledger::Insert { job, pushed: false, open_parents: 0 }];
            !ledger::insert(&mut tx, &rows).await.unwrap().is_empty()
        } else {
            ledger::insert_with_parents(&mut tx, job).await.unwrap().is_some()
        };
        tx.commit().await.unwrap();
        entered
    }

    async fn claim(&mut self, worker: usize, limit: usize) -> Result<usize, TestCaseError> {
        let me = self.workers[worker];
        let mut claims = Vec::new();
        for suspects in [false, true] {
            let lane = Lane::Default;
            let more = ledger::claim_from_ledger(&mut self.db, me, Queue::Ops, lane, &["act"], suspects, limit).await;
            claims.extend(more.unwrap());
        }
        for claim in &claims {
            let was = self.before.get(&claim.job).map(|(state, run, _)| (*state, *run));
            prop_assert_eq!(was, Some((State::Queued, claim.run - 1)));
            let held = self.held.insert(claim.job, (me, claim.run));
            prop_assert!(held.is_none(), "{} was claimed twice", claim.job);
            if claim.failed_attempts + 1 >= claim.max_attempts {
                self.last_tries.insert(claim.job);
            } else {
                self.last_tries.remove(&claim.job);
            }
        }
        Ok(claims.len())
    }

    async fn die(&mut self, worker: usize) -> Result<(), TestCaseError> {
        let me = self.workers[worker];
        sqlx::query("update workers set lease_expires_at = now() - interval '1 second' where id = $1")
            .bind(me)
            .execute(&mut self.db)
            .await
            .unwrap();
        let rescued = ledger::reap(&mut self.db, 100).await.unwrap();
        prop_assert_eq!(rescued.len(), self.take_from(me));
        let ended = rescued.iter().filter(|row| row.ended && row.has_children).map(|row| row.job).collect();
        self.release(ended).await;
        self.workers[worker] = paper_worker(&mut self.db, LEASE).await;
        Ok(())
    }

    async fn release(&mut self, mut ended: Vec<JobId>) {
        while !ended.is_empty() {
            ended = ledger::release_children(&mut self.db, &ended).await.unwrap().cancelled_parents;
        }
    }

    fn take_from(&mut self, worker: WorkerId) -> usize {
        let gone: Vec<_> =
            self.held.iter().filter(|(_, (holder, _))| *holder == worker).map(|(job, (_, run))| (*job, *run)).collect();
        for (job, _) in &gone {
            self.held.remove(job);
        }
        self.stale.extend(&gone);
        gone.len()
    }

    /// Nothing is lost, nothing moved that this operation may not move, and the hands are as the claims said.
    async fn check(&mut self, op: &Op, allowed: &[(State, State)]) -> Result<(), TestCaseError> {
        let now = self.snapshot().await;
        prop_assert_eq!(now.keys().copied().collect::<HashSet<_>>(), self.jobs.iter().copied().collect::<HashSet<_>>());
        for (job, (state, run, worker)) in &now {
            if let Some((was, run_was, _)) = self.before.get(job) {
                prop_assert!(
                    was == state || allowed.contains(&(*was, *state)),
                    "{op:?} moved {job} from {was} to {state}"
                );
                prop_assert!(run >= run_was);
            }
            let held = self.held.get(job).copied();
            prop_assert_eq!(held, worker.map(|worker| (worker, *run)), "who holds {}", job);
        }
        let doubled: i64 = sqlx::query_scalar(
            "select count(*) from (select from jobs where serial_key is not null and state in ('queued', 'running') \
             group by serial_key having count(*) > 1) d",
        )
        .fetch_one(&mut self.db)
        .await
        .unwrap();
        let over: i64 = sqlx::query_scalar("select count(*) from jobs where attempt > max_attempts")
            .fetch_one(&mut self.db)
            .await
            .unwrap();
        prop_assert_eq!((doubled, over), (0, 0));
        self.before = now;
        Ok(())
    }

    /// However it was left: with workers that live and time that passes, every job ends.
    async fn finish(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..200 {
            sqlx::query("update jobs set run_at = now() where state = 'scheduled'")
                .execute(&mut self.db)
                .await
                .unwrap();
            for op in [Op::Sweep, Op::Promote, Op::Claim { worker: 0, limit: 10 }] {
                self.apply(&op).await?;
            }
            while !self.held.is_empty() {
                self.apply(&Op::Settle { which: 0, how: How::Succeed }).await?;
            }
            if self.before.values().all(|(state, ..)| state.is_final()) {
                return Ok(());
            }
        }
        prop_assert!(false, "some jobs never end: {:?}", self.before);
        Ok(())
    }

    async fn snapshot(&mut self) -> Snapshot {
        let rows: Vec<(JobId, String, i32, Option<WorkerId>)> =
            sqlx::query_as("select id, state::text, run, worker_id from jobs").fetch_all(&mut self.db).await.unwrap();
        rows.into_iter().map(|(id, state, run, worker)| (id, (state.parse().unwrap(), run, worker))).collect()
    }

    fn nth(&self, which: usize) -> Option<JobId> {
        self.jobs.get(which % self.jobs.len().max(1)).copied()
    }

    fn nth_held(&self, which: usize) -> Option<(JobId, i32)> {
        let mut held: Vec<_> = self.held.iter().map(|(job, (_, run))| (*job, *run)).collect();
        held.sort_unstable();
        held.get(which % held.len().max(1)).copied()
    }
}

fn settlement(job: JobId, run: i32, how: How) -> Settlement {
    let why = || Why::new("model", "as the model says");
    let again = |charged, wake: Option<&str>, class| End::Again {
        at: Again::After(Duration::ZERO),
        charged,
        class,
        why: why(),
        wake: wake.map(str::to_owned),
    };
    let end = match how {
        How::Succeed => End::Succeeded { result: Value::Null },
        How::Fail => End::Failed { why: why(), class: "permanent" },
        How::Retry => again(true, None, "retry"),
        How::Snooze => again(false, None, "snooze"),
        How::Park => again(false, Some("event"), "parked"),
        How::HandBack => End::HandedBack { why: why() },
    };
    Settlement { job, run, end }
}

#[test]
fn no_sequence_of_operations_loses_or_doubles_a_job() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let stage = runtime.block_on(Stage::new());
    let config = ProptestConfig {
        cases: if full_size() { 2_000 } else { 60 },
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(ops in ops())| {
        runtime.block_on(async {
            let mut db = stage.db().await.detach();
            sqlx::query("truncate jobs, job_edges, job_attempts, job_notes, workers cascade").execute(&mut db).await.unwrap();
            let mut workers = Vec::new();
            for _ in 0..2 {
                workers.push(paper_worker(&mut db, LEASE).await);
            }
            let (jobs, held, stale) = (Vec::new(), HashMap::new(), Vec::new());
            let mut model = Model { stage: &stage, db, workers, jobs, last_tries: HashSet::new(), held, stale, before: Snapshot::new() };
            for op in &ops {
                model.apply(op).await?;
            }
            model.finish().await
        })?;
    });
}
