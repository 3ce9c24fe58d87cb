//! What happened, as a table for people; the same as JSON for programs.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use super::{bars::shortened, client::JobStatus};
use crate::{cli::jobs::duration, media::PresetName};

/// Everything that happened.
#[derive(Debug, Serialize)]
pub struct Report {
    pub succeeded: bool,
    pub rows: Vec<Row>,
    /// What went wrong beyond a job.
    pub problems: Vec<String>,
    /// What was not begun, because the file does not suit it.
    pub refused: Vec<Refused>,
    /// What the sandbox counted.
    pub posts: Option<u64>,
    pub addresses: Vec<(String, String)>,
}

/// Something that a plan refused.
#[derive(Debug, Serialize)]
pub struct Refused {
    pub what: String,
    pub preset: PresetName,
    pub why: String,
}

/// One job.
#[derive(Debug, Serialize)]
pub struct Row {
    pub what: String,
    pub job: JobStatus,
    pub result: String,
    pub see: String,
}

pub fn describe(report: &Report) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["WHAT", "QUEUE", "STATE", "ATTEMPTS", "WAITED", "RAN", "RESULT", "WHERE TO SEE IT"]);
    for row in &report.rows {
        table.add_row([
            row.what.clone(),
            row.job.queue.clone(),
            row.job.state.clone(),
            row.job.attempt.to_string(),
            duration(row.job.waited_ms),
            row.job.ran_ms.map(duration).unwrap_or_default(),
            shortened(&row.result, 90),
            row.see.clone(),
        ]);
    }
    for refused in &report.refused {
        let none = String::new;
        let row = [refused.what.clone(), "media".into(), "refused".into(), none(), none(), none()];
        table.add_row(row.into_iter().chain([shortened(&refused.why, 90), none()]));
    }
    for column in 3..=5 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text = format!("\n{table}\n");
    for problem in &report.problems {
        text.push_str(&format!("\nFAILED: {problem}"));
    }
    if let Some(posts) = report.posts {
        text.push_str(&format!("\nThe sandbox's X counts {posts} posts, each of them once.\n"));
    }
    for (name, address) in &report.addresses {
        text.push_str(&format!("\n  {name:14} {address}"));
    }
    text
}
