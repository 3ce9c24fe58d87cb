//! The belt's bounded window, filled from the ledger by fair turns between tenants (E5, E18).
//!
//! A window holds about as much as is consumed until the next round, so that one tenant's crowd already on the belt
//! delays another's single job by little, and a million waiting rows are never pushed at once.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::Duration,
};

use sqlx::PgConnection;
use tokio::time::Instant;
use tracing::debug;

use crate::{
    ids::{JobId, TenantId},
    jobs::{
        belt::{Belt, BeltError, List, Slot},
        ledger::{self, Runnable, Turn, Waiting},
    },
    telemetry::chain,
};

const SMALLEST: usize = 32;
const LARGEST: usize = 10_000;
/// Lists and tenants with something queued that one round looks at.
const GROUPS: i64 = 10_000;
/// Sequence numbers are given before their rows commit: rows may still appear this long below what was seen.
const LATE_COMMITS: Duration = Duration::from_millis(300);

/// What this leader knows of every list.
#[derive(Debug, Default)]
pub struct Windows {
    windows: HashMap<List, Window>,
    /// Where the next round's turns begin, so that no tenant is first for ever.
    rotation: usize,
}

#[derive(Debug)]
struct Window {
    size: usize,
    tenants: HashMap<TenantId, Pushed>,
    /// Found on the belt when this process began to lead.
    found: HashSet<JobId>,
    /// The last round filled it to the brim.
    was_filled: bool,
    length: usize,
}

#[derive(Debug, Default)]
struct Pushed {
    /// Everything up to here was pushed long enough ago for late commits to have shown.
    upto: i64,
    recent: VecDeque<(Instant, JobId, i64)>,
}

impl Windows {
    /// No list is longer than what a worker takes at once, as far as is known: pushing directly is fair.
    pub fn have_room(&self) -> bool {
        self.windows.values().all(|window| window.length < SMALLEST)
    }

    /// What a former leader left on the belt need not be pushed again.
    pub async fn learn_what_is_there(&mut self, belt: &Belt) {
        for list in List::all().filter(|list| list.slot != Slot::Suspects) {
            match belt.contents(list).await {
                Ok(ids) if ids.is_empty() => {}
                Ok(ids) => self.window(list).found = ids.into_iter().collect(),
                // Duplicates do no harm.
                Err(error) => return debug!(error = %chain(&error), "the belt was not read"),
            }
        }
    }

    /// For the audit: which tenants of a list have rows that should be there, and up to which.
    pub fn cursors(&self) -> Vec<(List, Vec<(TenantId, i64)>)> {
        let of = |(list, window): (&List, &Window)| {
            let newest = |pushed: &Pushed| pushed.recent.back().map_or(pushed.upto, |(.., seq)| *seq);
            let tenants = window.tenants.iter().map(|(tenant, pushed)| (*tenant, newest(pushed)));
            (*list, tenants.collect())
        };
        self.windows.iter().map(of).collect()
    }

    /// Fills what has room; `true` when more waits than was pushed.
    pub async fn fill(&mut self, db: &mut PgConnection, belt: &Belt) -> sqlx::Result<bool> {
        let waiting = ledger::waiting(&mut *db, GROUPS).await?;
        let mut lists: Vec<List> = waiting.iter().map(|group| group.list).collect();
        lists.dedup();
        self.forget_what_is_empty(&waiting);
        let lengths = match belt.lens(&lists).await {
            Ok(lengths) => lengths,
            Err(error) => {
                debug!(error = %chain(&error), "no belt to fill");
                return Ok(false);
            }
        };
        let mut more = false;
        self.rotation = self.rotation.wrapping_add(1);
        for (list, length) in lists.into_iter().zip(lengths) {
            let tenants: Vec<TenantId> =
                waiting.iter().filter(|group| group.list == list).map(|group| group.tenant).collect();
            match self.fill_list(db, belt, list, length, &tenants).await? {
                Ok(waits) => more |= waits,
                Err(error) => debug!(error = %chain(&error), "the audit pushes them again"),
            }
        }
        Ok(more)
    }

    async fn fill_list(
        &mut self,
        db: &mut PgConnection,
        belt: &Belt,
        list: List,
        length: usize,
        tenants: &[TenantId],
    ) -> sqlx::Result<Result<bool, BeltError>> {
        let rotation = self.rotation;
        let window = self.window(list);
        window.resize(length);
        let room = window.size.saturating_sub(length);
        if room < window.size / 2 {
            return Ok(Ok(window.was_filled));
        }
        let turns = window.turns(tenants, room, rotation);
        let rows = ledger::fill(&mut *db, list, &turns).await?;
        let chosen = window.choose(rows, room);
        window.was_filled = chosen.len() >= room;
        window.length = length + chosen.len();
        if chosen.is_empty() {
            return Ok(Ok(false));
        }
        let runnable: Vec<_> = chosen.iter().map(|(_, job, _)| Runnable { job: *job, list }).collect();
        if let Err(error) = belt.push(&runnable).await {
            return Ok(Err(error));
        }
        let now = Instant::now();
        for (tenant, job, seq) in chosen {
            window.tenants.entry(tenant).or_default().recent.push_back((now, job, seq));
        }
        Ok(Ok(window.was_filled))
    }

    fn forget_what_is_empty(&mut self, waiting: &[Waiting]) {
        let there: HashSet<(List, TenantId)> = waiting.iter().map(|group| (group.list, group.tenant)).collect();
        for (list, window) in &mut self.windows {
            window.tenants.retain(|tenant, _| there.contains(&(*list, *tenant)));
            if window.tenants.is_empty() {
                (window.was_filled, window.length) = (false, 0);
            }
        }
        for group in waiting {
            self.window(group.list).tenants.entry(group.tenant).or_default();
        }
    }

    fn window(&mut self, list: List) -> &mut Window {
        self.windows.entry(list).or_insert_with(|| Window {
            size: SMALLEST,
            tenants: HashMap::new(),
            found: HashSet::new(),
            was_filled: false,
            length: 0,
        })
    }
}

impl Window {
    /// Grows while it runs dry between rounds, shrinks while it stays full.
    fn resize(&mut self, length: usize) {
        if self.was_filled && length < self.size / 4 {
            self.size = (self.size * 2).min(LARGEST);
        } else if length > self.size * 3 / 4 {
            self.size = (self.size * 9 / 10).max(SMALLEST);
        }
        self.length = length;
    }

    fn turns(&mut self, tenants: &[TenantId], room: usize, rotation: usize) -> Vec<Turn> {
        let mut order: Vec<TenantId> = tenants.to_vec();
        order.rotate_left(rotation % tenants.len().max(1));
        order.truncate(room);
        let share = room.div_ceil(order.len().max(1));
        order
            .into_iter()
            .map(|tenant| {
                let pushed = self.tenants.entry(tenant).or_default();
                pushed.settle();
                // A tenant alone takes all the room; in company it may still, if the others do not need theirs.
                let limit = if tenants.len() > 100 { share } else { room } + pushed.recent.len();
                Turn { tenant, after_seq: pushed.upto, limit: i64::try_from(limit).unwrap_or(i64::MAX) }
            })
            .collect()
    }

    /// One of each tenant, then the next of each, until the room is used up.
    fn choose(&mut self, rows: Vec<(TenantId, JobId, i64)>, room: usize) -> Vec<(TenantId, JobId, i64)> {
        let mut queues: Vec<VecDeque<(TenantId, JobId, i64)>> = Vec::new();
        for row in rows {
            let (tenant, job, _) = row;
            let is_known =
                self.tenants.get(&tenant).is_some_and(|pushed| pushed.recent.iter().any(|(_, id, _)| *id == job));
            if is_known || self.found.remove(&job) {
                continue;
            }
            match queues.last_mut() {
                Some(queue) if queue.front().is_some_and(|(first, ..)| *first == tenant) => queue.push_back(row),
                _ => queues.push(VecDeque::from([row])),
            }
        }
        let mut chosen = Vec::with_capacity(room.min(LARGEST));
        while chosen.len() < room && !queues.is_empty() {
            queues.retain_mut(|queue| {
                if chosen.len() < room {
                    chosen.extend(queue.pop_front());
                }
                !queue.is_empty()
            });
        }
        chosen
    }
}

impl Pushed {
    fn settle(&mut self) {
        while self.recent.front().is_some_and(|(at, ..)| at.elapsed() > LATE_COMMITS) {
            if let Some((.., seq)) = self.recent.pop_front() {
                self.upto = self.upto.max(seq);
            }
        }
    }
}
