//! Which providers to leave alone for now.
//!
//! Closed: calls pass. Open: they do not, until the cool-down is over. Then half-open: one call tries; success
//! closes, failure opens again for twice as long. Kept per process; every method takes the time and only the front
//! holds the lock, so that a shared store can take its place.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{
    errors::{CallError, CoolDown},
    provider::ProviderName,
};

/// Over this time a provider's rate of failures is watched.
const WINDOW: Duration = Duration::from_secs(60);
/// Fewer answers than this say nothing.
const FEWEST: usize = 5;
/// First cool-down after too many failures, and after a throttle that named no time.
const FIRST_COOL_DOWN: Duration = Duration::from_secs(15);
const LONGEST_DOUBLED: Duration = Duration::from_secs(10 * 60);
/// A provider that asks for more than this is not believed.
const LONGEST_TOLD: Duration = Duration::from_secs(60 * 60);
/// A trying call that never reports back does not keep a provider half-open for ever.
const TRY_EXPIRES: Duration = Duration::from_secs(5 * 60);

/// A provider with one of its models: a model that is gone leaves the provider's others alone.
type Key = (ProviderName, String);

/// All circuits of this process. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Breakers(Arc<Mutex<HashMap<Key, Circuit>>>);

/// Leave to call; report what came of it, or drop it when nothing did.
#[derive(Debug)]
pub struct Permit {
    breakers: Breakers,
    key: Key,
    trial: bool,
    reported: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Circuitry {
    Closed,
    /// For this long still.
    Open(Duration),
    /// The next call is the trying one, or it is under way.
    HalfOpen,
}

#[derive(Debug, Default)]
struct Circuit {
    recent: VecDeque<(Instant, bool)>,
    open_until: Option<Instant>,
    cool_down: Duration,
    trying_since: Option<Instant>,
}

impl Breakers {
    /// Leave to call, or how long to wait.
    pub fn admit(&self, provider: ProviderName, model: &str, now: Instant) -> Result<Permit, Duration> {
        let key = (provider, model.to_owned());
        let trial = self.with(&key, |circuit| circuit.admit(now))?;
        Ok(Permit { breakers: self.clone(), key, trial, reported: false })
    }

    /// Leave to call all the same: when every circuit is open there is nothing to lose.
    pub fn bypass(&self, provider: ProviderName, model: &str) -> Permit {
        Permit { breakers: self.clone(), key: (provider, model.to_owned()), trial: false, reported: false }
    }

    pub fn state(&self, provider: ProviderName, model: &str, now: Instant) -> Circuitry {
        self.with(&(provider, model.to_owned()), |circuit| circuit.state(now))
    }

    fn with<T>(&self, key: &Key, f: impl FnOnce(&mut Circuit) -> T) -> T {
        // A panic elsewhere cannot leave a circuit half changed.
        let mut circuits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        f(circuits.entry(key.clone()).or_default())
    }
}

impl Permit {
    pub fn answered(mut self, now: Instant) {
        self.reported = true;
        self.breakers.clone().with(&self.key, |circuit| circuit.succeeded(now));
    }

    pub fn failed(mut self, error: &CallError, now: Instant) {
        self.reported = true;
        let told = error.retry_after.map(|wait| wait.min(LONGEST_TOLD));
        let trial = self.trial;
        self.breakers.clone().with(&self.key, |circuit| match error.class.cool_down() {
            // The provider works; it is this request it does not like.
            CoolDown::None => circuit.succeeded(now),
            CoolDown::ByErrorRate => circuit.failed(now, trial),
            CoolDown::UntilTold => circuit.opened(told.unwrap_or(FIRST_COOL_DOWN), now, trial),
            CoolDown::Fixed(cool_down) => circuit.opened(cool_down, now, trial),
        });
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.trial && !self.reported {
            self.breakers.clone().with(&self.key, |circuit| circuit.trying_since = None);
        }
    }
}

impl Circuit {
    /// Whether the call is a trying one.
    fn admit(&mut self, now: Instant) -> Result<bool, Duration> {
        let Some(until) = self.open_until else { return Ok(false) };
        if now < until {
            return Err(until - now);
        }
        if let Some(since) = self.trying_since
            && now - since < TRY_EXPIRES
        {
            return Err(Duration::from_secs(1));
        }
        self.trying_since = Some(now);
        Ok(true)
    }

    fn state(&self, now: Instant) -> Circuitry {
        match self.open_until {
            None => Circuitry::Closed,
            Some(until) if now < until => Circuitry::Open(until - now),
            Some(_) => Circuitry::HalfOpen,
        }
    }

    fn succeeded(&mut self, now: Instant) {
        (self.open_until, self.trying_since, self.cool_down) = (None, None, Duration::ZERO);
        self.note(now, true);
    }

    fn failed(&mut self, now: Instant, trial: bool) {
        self.note(now, false);
        let failures = self.recent.iter().filter(|(_, well)| !well).count();
        if trial || self.recent.len() >= FEWEST && failures * 2 > self.recent.len() {
            self.opened(FIRST_COOL_DOWN, now, trial);
        }
    }

    /// A failed try doubles the cool-down before it.
    fn opened(&mut self, cool_down: Duration, now: Instant, trial: bool) {
        let doubled = if trial { (self.cool_down * 2).min(LONGEST_DOUBLED) } else { Duration::ZERO };
        self.open_for(cool_down.max(doubled), now);
    }

    /// Never shortens a cool-down under way.
    fn open_for(&mut self, cool_down: Duration, now: Instant) {
        let until = now + cool_down;
        if self.open_until.is_none_or(|open| open < until) {
            (self.open_until, self.cool_down) = (Some(until), cool_down);
        }
        self.trying_since = None;
        self.recent.clear();
    }

    fn note(&mut self, now: Instant, well: bool) {
        self.recent.push_back((now, well));
        while self.recent.front().is_some_and(|(at, _)| now.duration_since(*at) > WINDOW) {
            self.recent.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::errors::Class, *};

    const WHO: ProviderName = ProviderName::Grok;

    fn error(class: Class) -> CallError {
        CallError::new(WHO, class, "no")
    }

    fn admitted(breakers: &Breakers, now: Instant) -> bool {
        breakers.admit(WHO, "m", now).is_ok()
    }

    fn fail(breakers: &Breakers, class: Class, now: Instant) {
        breakers.admit(WHO, "m", now).unwrap().failed(&error(class), now);
    }

    #[test]
    fn more_than_half_of_at_least_five_answers_failing_opens() {
        let (breakers, now) = (Breakers::default(), Instant::now());
        for _ in 0..4 {
            fail(&breakers, Class::Transient, now);
        }
        assert!(admitted(&breakers, now));
        fail(&breakers, Class::Transient, now);
        assert!(!admitted(&breakers, now));
    }

    #[test]
    fn old_failures_are_forgotten() {
        let (breakers, now) = (Breakers::default(), Instant::now());
        for _ in 0..4 {
            fail(&breakers, Class::Transient, now);
        }
        fail(&breakers, Class::Transient, now + WINDOW * 2);
        assert!(admitted(&breakers, now + WINDOW * 2));
    }

    #[test]
    fn after_the_cool_down_one_call_tries_and_success_closes() {
        let (breakers, now) = (Breakers::default(), Instant::now());
        fail(&breakers, Class::Throttled, now);
        let later = now + FIRST_COOL_DOWN;
        let trial = breakers.admit(WHO, "m", later).unwrap();
        assert!(!admitted(&breakers, later), "a second call passed while the first was trying");
        trial.answered(later);
        assert_eq!(breakers.state(WHO, "m", later), Circuitry::Closed);
    }

    #[test]
    fn a_failed_try_doubles_the_cool_down_up_to_its_cap() {
        let (breakers, mut now) = (Breakers::default(), Instant::now());
        fail(&breakers, Class::Throttled, now);
        let mut cool_downs = Vec::new();
        for _ in 0..8 {
            let Circuitry::Open(left) = breakers.state(WHO, "m", now) else { panic!("not open") };
            cool_downs.push(left.as_secs());
            now += left;
            fail(&breakers, if left.as_secs() % 20 == 0 { Class::Transient } else { Class::Throttled }, now);
        }
        assert_eq!(cool_downs, [15, 30, 60, 120, 240, 480, 600, 600]);
    }

    #[test]
    fn a_try_that_never_reports_does_not_keep_the_provider_out() {
        let (breakers, now) = (Breakers::default(), Instant::now());
        fail(&breakers, Class::Throttled, now);
        drop(breakers.admit(WHO, "m", now + FIRST_COOL_DOWN).unwrap());
        assert!(admitted(&breakers, now + FIRST_COOL_DOWN));
    }

    #[test]
    fn a_throttle_lasts_as_long_as_the_provider_said_within_reason() {
        let (breakers, now) = (Breakers::default(), Instant::now());
        let told = CallError { retry_after: Some(Duration::from_secs(90)), ..error(Class::Throttled) };
        breakers.bypass(WHO, "m").failed(&told, now);
        assert_eq!(breakers.state(WHO, "m", now), Circuitry::Open(Duration::from_secs(90)));
        let absurd = CallError { retry_after: Some(Duration::from_secs(u32::MAX.into())), ..told };
        breakers.bypass(WHO, "m").failed(&absurd, now);
        assert_eq!(breakers.state(WHO, "m", now), Circuitry::Open(LONGEST_TOLD));
    }

    #[test]
    fn a_request_that_is_refused_for_itself_leaves_the_provider_alone() {
        let (breakers, now) = (Breakers::default(), Instant::now());
        for class in [Class::Caller, Class::Policy, Class::TooLong, Class::Cancelled].repeat(5) {
            fail(&breakers, class, now);
        }
        assert!(admitted(&breakers, now));
    }

    #[test]
    fn a_model_that_is_gone_leaves_the_providers_other_models_alone() {
        let (breakers, now) = (Breakers::default(), Instant::now());
        fail(&breakers, Class::ModelGone, now);
        assert!(!admitted(&breakers, now));
        assert!(breakers.admit(WHO, "another", now).is_ok());
    }
}
