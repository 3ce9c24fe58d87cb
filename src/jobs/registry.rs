//! Which kinds of job a worker knows, and the services they need.

use std::{
    any::{Any, TypeId},
    collections::HashMap,
    fmt,
    sync::Arc,
};

use futures::future::{BoxFuture, FutureExt};
use serde_json::{Value, value::RawValue};

use super::{
    JobContext,
    canary::Canary,
    job::{Backoff, Job, Lane, NewJob, Queue, Stop},
    noop::Noop,
    relay::{CatchUp, Schedule, Timetable},
};
use crate::ids::TenantId;

/// Made once at start; a kind that is not in it is left to a worker that knows it (E15).
#[derive(Default)]
pub struct Registry {
    kinds: HashMap<&'static str, Kind>,
    services: HashMap<TypeId, Arc<dyn Any + Send + Sync>>,
    schedules: Vec<Schedule>,
}

/// One kind, with its type forgotten.
pub struct Kind {
    pub queue: Queue,
    pub lane: Lane,
    pub backoff: Backoff,
    run: RunKind,
}

type RunKind =
    for<'a> fn(&'a RawValue, &'a JobContext) -> Result<BoxFuture<'a, Result<Value, Stop>>, serde_json::Error>;

impl Registry {
    /// What every worker of `queue` knows: the jobs that prove it alive and measure it.
    pub fn of(queue: Queue) -> Self {
        Self::default().job_on::<Canary>(queue, Lane::Default).job_on::<Noop>(queue, Lane::Default)
    }

    /// # Panics
    /// When two jobs share a kind, or the queue is not divided so: faults that every start would meet.
    pub fn job<J: Job>(self) -> Self {
        self.job_on::<J>(J::QUEUE, J::LANE)
    }

    /// The same for a kind that any queue may carry.
    ///
    /// # Panics
    /// As [`Self::job`].
    pub fn job_on<J: Job>(mut self, queue: Queue, lane: Lane) -> Self {
        assert!(queue.lanes().contains(&lane), "the queue {queue} has no lane {lane} for the kind \"{}\"", J::KIND);
        let kind = Kind { queue, lane, backoff: J::BACKOFF, run: run::<J> };
        let before = self.kinds.insert(J::KIND, kind);
        assert!(before.is_none(), "two jobs are of the kind \"{}\"", J::KIND);
        self
    }

    pub fn service<T: Send + Sync + 'static>(mut self, service: Arc<T>) -> Self {
        self.services.insert(TypeId::of::<T>(), service);
        self
    }

    /// Registers a job of the product's own upkeep that runs by the clock; a fire that meets its predecessor
    /// unfinished is left out.
    ///
    /// # Panics
    /// As [`Self::job`].
    pub fn upkeep<J: Job>(mut self, name: &'static str, cron: &'static str, job: &J) -> Self {
        let timetable = Timetable {
            name: name.into(),
            cron: cron.into(),
            timezone: "UTC".into(),
            catch_up: CatchUp::Latest,
            exclusive: true,
        };
        self.schedules.push(Schedule { timetable, job: NewJob::of(job, TenantId::SYSTEM) });
        self.job::<J>()
    }

    pub(super) fn schedules(&self) -> &[Schedule] {
        &self.schedules
    }

    pub fn get(&self, kind: &str) -> Option<&Kind> {
        self.kinds.get(kind)
    }

    /// Names of the kinds of one lane.
    pub fn kinds(&self, queue: Queue, lane: Lane) -> Vec<&'static str> {
        let of_lane =
            |(name, kind): (&&'static str, &Kind)| (kind.queue == queue && kind.lane == lane).then_some(*name);
        self.kinds.iter().filter_map(of_lane).collect()
    }

    pub fn all_kinds(&self) -> impl Iterator<Item = &'static str> {
        self.kinds.keys().copied()
    }

    /// Lanes of a queue for which a kind is known.
    pub fn lanes(&self, queue: Queue) -> Vec<Lane> {
        Lane::ALL.iter().copied().filter(|lane| !self.kinds(queue, *lane).is_empty()).collect()
    }

    pub(super) fn find_service<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        Arc::clone(self.services.get(&TypeId::of::<T>())?).downcast().ok()
    }
}

impl Kind {
    /// Starts a run, or says why the arguments cannot be read.
    pub fn run<'a>(
        &self,
        args: &'a RawValue,
        cx: &'a JobContext,
    ) -> Result<BoxFuture<'a, Result<Value, Stop>>, serde_json::Error> {
        (self.run)(args, cx)
    }
}

fn run<'a, J: Job>(
    args: &'a RawValue,
    cx: &'a JobContext,
) -> Result<BoxFuture<'a, Result<Value, Stop>>, serde_json::Error> {
    let job: J = serde_json::from_str(args.get())?;
    Ok(async move {
        let output = job.run(cx).await.map_err(|stop| match J::IS_BULK {
            true => stop.at_the_limit_used_an_attempt(),
            false => stop,
        })?;
        serde_json::to_value(output)
            .map_err(|error| Stop::failed("result_not_json", format!("its result cannot be written as JSON: {error}")))
    }
    .boxed())
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("kinds", &self.kinds.keys()).finish_non_exhaustive()
    }
}
