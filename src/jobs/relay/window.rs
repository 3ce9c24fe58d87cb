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
/// Tenants with something queued that one look sees of each list; the next look begins with the last of them.
const TENANTS: usize = 2_000;
/// Reads of the ledger for one list in one round, each about as large as the room that is left.
const LOOKS: usize = 3;
/// Sequence numbers are given before their rows commit: rows may still appear this long below what was seen.
const LATE_COMMITS: Duration = Duration::from_millis(300);
/// Between looks back for such rows; the other rounds read only what is new.
const LOOK_BACK_EVERY: Duration = Duration::from_millis(150);
/// While there is more than fits, who else waits is asked this often: the answer walks over what was claimed since
/// the last vacuum, and another tenant's job may wait a second (E18).
const LOOK_AROUND_EVERY: Duration = Duration::from_millis(250);

/// A queued row: its tenant, its job, its sequence number.
type Row = (TenantId, JobId, i64);

/// What this leader knows of every list.
#[derive(Debug, Default)]
pub struct Windows {
    windows: HashMap<List, Window>,
    /// Where the next round's turns begin, so that no tenant is first for ever.
    rotation: usize,
    /// Who waited at the last look around, while more waits than fits.
    around: Option<(Instant, Vec<Waiting>)>,
    /// Lists with more tenants than one look sees, and where the next look begins.
    cut: Vec<(List, TenantId)>,
    seen_in_part: HashSet<List>,
}

#[derive(Debug)]
struct Window {
    size: usize,
    tenants: HashMap<TenantId, Pushed>,
    /// Found on the belt when this process began to lead.
    found: HashSet<JobId>,
    /// The last round left some lying.
    more_waits: bool,
    length: usize,
}

#[derive(Debug, Default)]
struct Pushed {
    /// Everything up to here was pushed long enough ago for late commits to have shown.
    upto: i64,
    /// Nothing beyond here was pushed.
    newest: i64,
    /// Pushed since `upto`, by sequence number: a job that comes back has a new one.
    recent: VecDeque<(Instant, i64)>,
    known: HashSet<i64>,
    looked_back_at: Option<Instant>,
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
            let tenants = window.tenants.iter().map(|(tenant, pushed)| (*tenant, pushed.newest));
            (*list, tenants.collect())
        };
        self.windows.iter().map(of).collect()
    }

    /// Fills what has room; `true` when more waits than was pushed.
    pub async fn fill(&mut self, db: &mut PgConnection, belt: &Belt) -> sqlx::Result<bool> {
        let (looked_at, waiting) = match self.around.take() {
            Some((at, waiting)) if at.elapsed() < LOOK_AROUND_EVERY => (at, waiting),
            _ => (Instant::now(), self.look_around(db).await?),
        };
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
        self.around = more.then_some((looked_at, waiting));
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
            return Ok(Ok(window.more_waits));
        }
        let now = Instant::now();
        let mut gathering = Gathering::new(window.turns(tenants, room, rotation, now), room);
        while gathering.goes_on() {
            let rows = ledger::fill(&mut *db, list, &gathering.turns).await?;
            gathering.take(window, rows, now);
        }
        window.more_waits = gathering.more_waits();
        let chosen = gathering.chosen;
        window.length = length + chosen.len();
        if chosen.is_empty() {
            return Ok(Ok(false));
        }
        let runnable: Vec<_> = chosen.iter().map(|(_, job, _)| Runnable { job: *job, list }).collect();
        if let Err(error) = belt.push(&runnable).await {
            return Ok(Err(error));
        }
        let pushed_at = Instant::now();
        for (tenant, _, seq) in chosen {
            window.tenants.entry(tenant).or_default().remember(pushed_at, seq);
        }
        Ok(Ok(window.more_waits))
    }

    async fn look_around(&mut self, db: &mut PgConnection) -> sqlx::Result<Vec<Waiting>> {
        let began: HashSet<List> = self.cut.iter().map(|(list, _)| *list).collect();
        let limit = i64::try_from(TENANTS).unwrap_or(i64::MAX);
        let waiting = ledger::waiting(&mut *db, &self.cut, limit).await?;
        let full = waiting.chunk_by(|a, b| a.list == b.list).filter(|list| list.len() >= TENANTS);
        self.cut = full.filter_map(|list| list.last()).map(|last| (last.list, last.tenant)).collect();
        // Of these only a part was seen: who is not in it may wait all the same.
        self.seen_in_part = self.cut.iter().map(|(list, _)| *list).chain(began).collect();
        Ok(waiting)
    }

    fn forget_what_is_empty(&mut self, waiting: &[Waiting]) {
        let there: HashSet<(List, TenantId)> = waiting.iter().map(|group| (group.list, group.tenant)).collect();
        for (list, window) in self.windows.iter_mut().filter(|(list, _)| !self.seen_in_part.contains(list)) {
            window.tenants.retain(|tenant, _| there.contains(&(*list, *tenant)));
            if window.tenants.is_empty() {
                (window.more_waits, window.length) = (false, 0);
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
            more_waits: false,
            length: 0,
        })
    }
}

impl Window {
    /// Grows while it runs dry between rounds, shrinks while it stays full.
    fn resize(&mut self, length: usize) {
        if self.more_waits && length < self.size / 4 {
            self.size = (self.size * 2).min(LARGEST);
        } else if length > self.size * 3 / 4 {
            self.size = (self.size * 9 / 10).max(SMALLEST);
        }
        self.length = length;
    }

    fn turns(&mut self, tenants: &[TenantId], room: usize, rotation: usize, now: Instant) -> Vec<Turn> {
        let mut order: Vec<TenantId> = tenants.to_vec();
        order.rotate_left(rotation % tenants.len().max(1));
        order.truncate(room);
        let share = room.div_ceil(order.len().max(1));
        order
            .into_iter()
            .map(|tenant| {
                let (after_seq, known) = self.tenants.entry(tenant).or_default().begin(now);
                Turn { tenant, after_seq, limit: limit(share + known) }
            })
            .collect()
    }

    /// One of each tenant, then the next of each, until the room is used up.
    fn choose(&mut self, rows: Vec<Row>, room: usize, now: Instant) -> Vec<Row> {
        let mut queues: Vec<VecDeque<Row>> = Vec::new();
        for row in rows {
            let (tenant, job, seq) = row;
            let pushed = self.tenants.entry(tenant).or_default();
            if pushed.known.contains(&seq) {
                continue;
            }
            if self.found.remove(&job) {
                pushed.remember(now, seq);
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

/// One round's rows of one list. A look reads about what still fits, shared out between the tenants: what is read and not
/// pushed is read again, and would cost more with every tenant. Room that some do not need is the others' in the next look.
struct Gathering {
    room: usize,
    turns: Vec<Turn>,
    chosen: Vec<Row>,
    looks: usize,
}

impl Gathering {
    fn new(turns: Vec<Turn>, room: usize) -> Self {
        Self { room, turns, chosen: Vec::with_capacity(room), looks: 0 }
    }

    fn goes_on(&self) -> bool {
        self.looks < LOOKS && self.chosen.len() < self.room && !self.turns.is_empty()
    }

    /// Chooses from what the turns brought. Only who used up a turn may have more, behind the last row of it.
    fn take(&mut self, window: &mut Window, rows: Vec<Row>, now: Instant) {
        let mut read: HashMap<TenantId, (i64, i64)> = HashMap::new();
        for (tenant, _, seq) in &rows {
            let (count, last) = read.entry(*tenant).or_default();
            (*count, *last) = (*count + 1, *seq);
        }
        self.chosen.extend(window.choose(rows, self.room - self.chosen.len(), now));
        self.turns.retain_mut(|turn| {
            let (count, last) = read.get(&turn.tenant).copied().unwrap_or_default();
            let may_have_more = count >= turn.limit;
            turn.after_seq = last;
            may_have_more
        });
        let share = (self.room - self.chosen.len()).div_ceil(self.turns.len().max(1));
        self.turns.iter_mut().for_each(|turn| turn.limit = limit(share));
        self.looks += 1;
    }

    fn more_waits(&self) -> bool {
        self.chosen.len() >= self.room || !self.turns.is_empty()
    }
}

fn limit(rows: usize) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}

impl Pushed {
    /// Where to read on, and how many of the rows there are known. Looks back now and then to what the last look
    /// cannot have seen: it settles what had been pushed long enough before that look, and reads on from there.
    fn begin(&mut self, now: Instant) -> (i64, usize) {
        match self.looked_back_at {
            Some(at) if now - at < LOOK_BACK_EVERY => return (self.newest, 0),
            Some(looked) => self.settle(looked),
            None => {}
        }
        self.looked_back_at = Some(now);
        (self.upto, self.recent.len())
    }

    fn settle(&mut self, looked: Instant) {
        while let Some((at, seq)) = self.recent.front().copied()
            && at + LATE_COMMITS < looked
        {
            self.recent.pop_front();
            self.known.remove(&seq);
            self.upto = self.upto.max(seq);
        }
    }

    fn remember(&mut self, now: Instant, seq: i64) {
        self.recent.push_back((now, seq));
        self.known.insert(seq);
        self.newest = self.newest.max(seq);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: usize = 10;

    fn window() -> Window {
        Window { size: ROOM, tenants: HashMap::new(), found: HashSet::new(), more_waits: false, length: 0 }
    }

    /// One round over rows that are queued in the ledger, by tenant; what it pushes, and how many rows it read.
    fn round_of(window: &mut Window, now: Instant, room: usize, ledger: &[(TenantId, Vec<i64>)]) -> (Vec<Row>, usize) {
        let tenants: Vec<TenantId> = ledger.iter().map(|(tenant, _)| *tenant).collect();
        let mut gathering = Gathering::new(window.turns(&tenants, room, 0, now), room);
        let mut read = 0;
        while gathering.goes_on() {
            let mut rows = Vec::new();
            for turn in &gathering.turns {
                let (tenant, seqs) = ledger.iter().find(|(tenant, _)| *tenant == turn.tenant).unwrap();
                let after = seqs.iter().copied().filter(|seq| *seq > turn.after_seq);
                rows.extend(after.take(usize::try_from(turn.limit).unwrap()).map(|seq| (*tenant, JobId::new(), seq)));
            }
            read += rows.len();
            gathering.take(window, rows, now);
        }
        for (tenant, _, seq) in &gathering.chosen {
            window.tenants.get_mut(tenant).unwrap().remember(now, *seq);
        }
        (gathering.chosen, read)
    }

    /// The same of one tenant; the sequence numbers of what it pushes.
    fn round(window: &mut Window, now: Instant, ledger: &[i64]) -> Vec<i64> {
        let (chosen, _) = round_of(window, now, ROOM, &[(TenantId::SYSTEM, ledger.to_vec())]);
        chosen.into_iter().map(|(.., seq)| seq).collect()
    }

    #[test]
    fn tenants_with_crowds_share_the_room_and_no_more_is_read_than_fits() {
        let crowd = |first: i64| (TenantId::new(), (first..first + 1_000).collect::<Vec<_>>());
        let ledger: Vec<_> = (0..10).map(|place| crowd(place * 1_000 + 1)).collect();
        let (chosen, read) = round_of(&mut window(), Instant::now(), 100, &ledger);
        assert_eq!((chosen.len(), read), (100, 100));
        for (tenant, _) in &ledger {
            assert_eq!(chosen.iter().filter(|(of, ..)| of == tenant).count(), 10);
        }
    }

    #[test]
    fn room_that_some_tenants_do_not_need_is_the_others() {
        let (crowd, few) = ((TenantId::new(), (1..=1_000).collect::<Vec<_>>()), (TenantId::new(), vec![1_001]));
        let (chosen, read) = round_of(&mut window(), Instant::now(), 100, &[few, crowd]);
        assert_eq!((chosen.len(), read), (100, 100));
        let of_crowd: Vec<_> = chosen.iter().map(|(.., seq)| *seq).filter(|seq| *seq <= 1_000).collect();
        assert_eq!(of_crowd, (1..=99).collect::<Vec<_>>(), "in order, none of them twice");
    }

    #[test]
    fn a_row_that_commits_late_is_found_and_none_is_pushed_twice() {
        let (mut window, mut now) = (window(), Instant::now());
        assert_eq!(round(&mut window, now, &[5, 6, 8]), [5, 6, 8]);
        let mut late = Vec::new();
        for _ in 0..40 {
            now += Duration::from_millis(25);
            late.extend(round(&mut window, now, &[5, 6, 7, 8]));
        }
        assert_eq!(late, [7]);
    }

    #[test]
    fn a_look_back_reads_past_all_that_is_known() {
        let (mut window, mut now) = (window(), Instant::now());
        let ledger: Vec<i64> = (1..=40).collect();
        let mut pushed = Vec::new();
        for _ in 0..8 {
            pushed.extend(round(&mut window, now, &ledger));
            now += LOOK_BACK_EVERY;
        }
        assert_eq!(pushed, ledger);
    }

    #[test]
    fn what_a_former_leader_pushed_is_not_pushed_again() {
        let (mut window, mut now, tenant, job) = (window(), Instant::now(), TenantId::SYSTEM, JobId::new());
        window.found.insert(job);
        for _ in 0..3 {
            window.turns(&[tenant], ROOM, 0, now);
            assert!(window.choose(vec![(tenant, job, 1)], ROOM, now).is_empty());
            now += Duration::from_millis(25);
        }
    }
}
