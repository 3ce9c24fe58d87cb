//! When a post is due: what the user said, and the instant that it means.

use std::str::FromStr;

use chrono::{DateTime, FixedOffset, NaiveDateTime, TimeZone, Utc};
use chrono_tz::Tz;

/// A due time with the words it was given in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    pub at: DateTime<Utc>,
    pub wall_time: NaiveDateTime,
    pub time_zone: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    #[error("is no date and time")]
    NotATime,
    #[error("has no time zone")]
    NoZone,
    #[error("\"{0}\" is no time zone")]
    UnknownZone(String),
    #[error("does not exist there: clocks are put forward over it")]
    Skipped,
    #[error("names an instant and a zone that do not agree")]
    Contradiction,
}

impl ScheduleError {
    pub fn field(&self) -> &'static str {
        match self {
            Self::NotATime | Self::Skipped | Self::Contradiction => "scheduled_at",
            Self::NoZone | Self::UnknownZone(_) => "time_zone",
        }
    }

    pub fn remedy(&self) -> &'static str {
        match self {
            Self::NotATime => "Send a time such as \"2027-03-01T09:30:00\" with a time_zone, or one with an offset",
            Self::NoZone => "Add \"time_zone\", such as \"Europe/Berlin\", or an offset, such as \"+01:00\"",
            Self::UnknownZone(_) => "Use a name of the IANA list, such as \"America/New_York\"",
            Self::Skipped => "Choose a time before or after the change of clocks",
            Self::Contradiction => "Leave the offset out, or use the zone's own",
        }
    }
}

/// A wall time in a zone, or an instant with an offset. A wall time that clocks show twice means the first one.
pub fn resolve(scheduled_at: &str, time_zone: Option<&str>) -> Result<Schedule, ScheduleError> {
    let zone = time_zone
        .map(|name| Tz::from_str(name).map_err(|_| ScheduleError::UnknownZone(name.to_owned())))
        .transpose()?;
    if let Ok(instant) = DateTime::<FixedOffset>::parse_from_rfc3339(scheduled_at) {
        return of_instant(instant, zone);
    }
    let wall_time = ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M"]
        .iter()
        .find_map(|form| NaiveDateTime::parse_from_str(scheduled_at, form).ok())
        .ok_or(ScheduleError::NotATime)?;
    let zone = zone.ok_or(ScheduleError::NoZone)?;
    let local = zone.from_local_datetime(&wall_time).earliest().ok_or(ScheduleError::Skipped)?;
    Ok(Schedule { at: local.with_timezone(&Utc), wall_time, time_zone: zone.name().to_owned() })
}

fn of_instant(instant: DateTime<FixedOffset>, zone: Option<Tz>) -> Result<Schedule, ScheduleError> {
    let at = instant.with_timezone(&Utc);
    let Some(zone) = zone else {
        return Ok(Schedule { at, wall_time: at.naive_utc(), time_zone: "UTC".to_owned() });
    };
    let wall_time = at.with_timezone(&zone).naive_local();
    // "09:30Z in Berlin" is two different times in one breath; only Z itself says nothing about a place.
    if instant.offset().local_minus_utc() != 0 && wall_time != instant.naive_local() {
        return Err(ScheduleError::Contradiction);
    }
    Ok(Schedule { at, wall_time, time_zone: zone.name().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(scheduled_at: &str, zone: Option<&str>) -> Result<String, ScheduleError> {
        resolve(scheduled_at, zone).map(|schedule| schedule.at.to_rfc3339())
    }

    #[test]
    fn a_wall_time_means_the_instant_of_its_zone() {
        assert_eq!(at("2027-01-15T09:30:00", Some("Europe/Berlin")).unwrap(), "2027-01-15T08:30:00+00:00");
        assert_eq!(at("2027-07-15T09:30", Some("Europe/Berlin")).unwrap(), "2027-07-15T07:30:00+00:00");
        let kept = resolve("2027-07-15T09:30", Some("Europe/Berlin")).unwrap();
        assert_eq!(
            (kept.wall_time.to_string().as_str(), kept.time_zone.as_str()),
            ("2027-07-15 09:30:00", "Europe/Berlin")
        );
    }

    #[test]
    fn a_time_that_clocks_skip_is_refused_and_one_they_show_twice_is_the_first() {
        assert_eq!(at("2027-03-28T02:30:00", Some("Europe/Berlin")), Err(ScheduleError::Skipped));
        assert_eq!(at("2027-10-31T02:30:00", Some("Europe/Berlin")).unwrap(), "2027-10-31T00:30:00+00:00");
    }

    #[test]
    fn an_instant_needs_no_zone_and_must_agree_with_one() {
        assert_eq!(at("2027-01-15T09:30:00+01:00", None).unwrap(), "2027-01-15T08:30:00+00:00");
        assert_eq!(at("2027-01-15T08:30:00Z", Some("Europe/Berlin")).unwrap(), "2027-01-15T08:30:00+00:00");
        assert_eq!(at("2027-01-15T09:30:00+05:00", Some("Europe/Berlin")), Err(ScheduleError::Contradiction));
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        assert_eq!(at("2027-01-15T09:30:00", None), Err(ScheduleError::NoZone));
        assert_eq!(at("tomorrow", Some("UTC")), Err(ScheduleError::NotATime));
        assert_eq!(at("2027-01-15T09:30:00", Some("Mars")), Err(ScheduleError::UnknownZone("Mars".into())));
    }
}
