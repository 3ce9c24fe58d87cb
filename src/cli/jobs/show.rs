//! Jobs as tables, and one job with all that happened to it.

use std::{io::IsTerminal, time::Duration};

use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use poem_openapi::types::ToJSON;
use serde_json::Value;

use super::{Failure, ListArguments, Screen};
use crate::{
    ids::{JobId, TenantId},
    jobs::{
        Engine, Priority, State,
        api::{JobView, TimelineView, ViewContext, progress_of},
        ledger::{JobFilter, JobRow},
    },
};

pub async fn list(engine: &Engine, wish: ListArguments, screen: Screen) -> Result<(), Failure> {
    // Whoever names what they look for gets it, whosever it is.
    let names_it = wish.all || wish.tenant.is_some() || wish.kind.is_some() || wish.group.is_some();
    let filter = JobFilter {
        tenant: wish.tenant,
        state: wish.state,
        queue: wish.queue,
        kind: wish.kind,
        group: wish.group,
        except: (!names_it).then_some(TenantId::SYSTEM),
    };
    let rows = engine.jobs(&filter, wish.before, i64::from(wish.limit)).await?;
    let context = ViewContext::of(&mut *engine.db().acquire().await?, &rows).await?;
    let views: Vec<_> = rows.iter().map(|row| JobView::new(row, &context)).collect();
    screen.show(&views.to_json(), || if views.is_empty() { "No such jobs.".into() } else { table(&views) })
}

fn table(views: &[JobView]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["JOB", "KIND", "QUEUE", "PRIORITY", "STATE", "ATTEMPT", "WAITED", "RAN", "WHY"]);
    for view in views {
        let why = view.error.as_ref().map(|error| error.message.clone()).or_else(|| view.reason.clone());
        table.add_row([
            view.id.to_string(),
            view.kind.clone(),
            view.queue.clone(),
            Priority::from(view.priority).to_string(),
            State::from(view.state).to_string(),
            format!("{}/{}", view.attempt, view.max_attempts),
            duration(view.waited_ms),
            view.ran_ms.map(duration).unwrap_or_default(),
            shortened(&why.unwrap_or_default()),
        ]);
    }
    table.to_string()
}

fn shortened(text: &str) -> String {
    const ROOM: usize = 80;
    match text.char_indices().nth(ROOM) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

pub fn duration(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{:.1} s", ms as f64 / 1e3),
        60_000..3_600_000 => format!("{} min {} s", ms / 60_000, ms / 1_000 % 60),
        _ => format!("{} h {} min", ms / 3_600_000, ms / 60_000 % 60),
    }
}

pub async fn show(engine: &Engine, job: JobId, follow: bool, screen: Screen) -> Result<(), Failure> {
    let mut row = find(engine, job).await?;
    if follow && !row.state.is_final() {
        row = until_end(engine, row).await?;
    }
    let context = ViewContext::of(&mut *engine.db().acquire().await?, std::slice::from_ref(&row)).await?;
    let mut view = JobView::new(&row, &context);
    if row.state == State::Running {
        view.progress = engine.progress(job).await.and_then(progress_of);
    }
    let timeline = TimelineView::new(&view, engine.timeline(&row).await?);
    let mut value = view.to_json().unwrap_or_default();
    value["args"] = row.args.clone();
    value["timeline"] = timeline.items.to_json().unwrap_or_default();
    screen.show(&value, || text(&row, &view, &timeline))
}

async fn find(engine: &Engine, job: JobId) -> Result<JobRow, Failure> {
    engine.job(None, job).await?.ok_or_else(|| Failure::failed(format!("there is no job {job}")))
}

/// Shows progress on a terminal while it waits for the end.
async fn until_end(engine: &Engine, mut row: JobRow) -> Result<JobRow, Failure> {
    let bar = std::io::stderr().is_terminal().then(|| {
        let style =
            ProgressStyle::with_template("{spinner} {bar:30} {percent:>3} % {msg}").expect("the template is valid");
        let bar = ProgressBar::new(1_000).with_style(style);
        bar.enable_steady_tick(Duration::from_millis(100));
        bar
    });
    while !row.state.is_final() {
        if let Some(bar) = &bar {
            let told = engine.progress(row.id).await.and_then(progress_of);
            let fraction = told.as_ref().and_then(|told| told.fraction).unwrap_or(0.0);
            bar.set_position((fraction.clamp(0.0, 1.0) * 1e3) as u64);
            bar.set_message(told.and_then(|told| told.phase).unwrap_or_else(|| row.state.to_string()));
        }
        row = engine
            .wait(None, row.id, Duration::from_millis(500))
            .await?
            .ok_or_else(|| Failure::failed("the job is gone: its time of keeping is over"))?;
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    Ok(row)
}

fn text(row: &JobRow, view: &JobView, timeline: &TimelineView) -> String {
    let mut facts = Table::new();
    facts.load_style(presets::NOTHING);
    let mut fact = |name: &str, value: String| {
        if !value.is_empty() {
            facts.add_row([name.to_owned(), value]);
        }
    };
    fact("job", row.id.to_string());
    fact("workspace", row.tenant.to_string());
    fact("kind", format!("{} (queue {}, lane {})", row.kind, row.queue, row.lane));
    fact("priority", Priority::from(view.priority).to_string());
    fact("state", row.state.to_string());
    fact("why", view.reason.clone().unwrap_or_default());
    fact("error", view.error.as_ref().map(|e| format!("{} ({}: {})", e.message, e.class, e.code)).unwrap_or_default());
    fact("attempt", format!("{} of {}", view.attempt, view.max_attempts));
    fact("handed back", if view.handbacks > 0 { format!("{} times", view.handbacks) } else { String::new() });
    fact("waited", duration(view.waited_ms));
    fact("ran", view.ran_ms.map(duration).unwrap_or_default());
    fact("group", row.group.map(|group| group.to_string()).unwrap_or_default());
    fact("arguments", shortened(&row.args.to_string()));
    fact("result", row.result.as_ref().map(|result| shortened(&result.to_string())).unwrap_or_default());

    let mut lines = Table::new();
    lines.load_style(presets::NOTHING);
    for entry in &timeline.items {
        lines.add_row([
            entry.at.format("%F %T%.3f").to_string(),
            entry.what.clone(),
            entry.detail.as_ref().map(detail).unwrap_or_default(),
        ]);
    }
    format!("{facts}\n\n{lines}")
}

/// An object as `name value` pairs.
fn detail(detail: &Value) -> String {
    let Some(fields) = detail.as_object() else { return detail.to_string() };
    let pairs = fields.iter().map(|(name, value)| match value {
        Value::String(text) => format!("{name} {text}"),
        value => format!("{name} {value}"),
    });
    pairs.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        let texts = [999, 1_500, 61_000, 7_260_000].map(duration);
        assert_eq!(texts, ["999 ms", "1.5 s", "1 min 1 s", "2 h 1 min"]);
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let text = "ä".repeat(100);
        assert_eq!(shortened(&text).chars().count(), 83);
        assert_eq!(shortened("short"), "short");
    }
}
