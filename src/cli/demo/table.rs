//! What happened, as a table for people; the same as JSON for programs.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use super::client::JobStatus;
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

/// A table that fits a terminal of 80 columns, and below it what does not fit into one: results, places, ids.
pub fn describe(report: &Report) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["WHAT", "QUEUE", "STATE", "TRIES", "WAITED", "RAN"]);
    for row in &report.rows {
        table.add_row([
            row.what.clone(),
            row.job.queue.clone(),
            row.job.state.clone(),
            row.job.attempt.to_string(),
            duration(row.job.waited_ms),
            row.job.ran_ms.map(duration).unwrap_or_default(),
        ]);
    }
    for refused in &report.refused {
        let none = String::new;
        table.add_row([refused.what.clone(), "media".into(), "refused".into(), none(), none(), none()]);
    }
    // A column between columns is enough; with more, long times would not fit.
    for column in table.column_iter_mut() {
        column.set_padding((0, 1));
    }
    for column in 3..=5 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text = format!("\n{table}\n");
    for row in &report.rows {
        text.push_str(&format!("\n{}\n", row.what));
        for (name, value) in [("result", &row.result), ("see", &row.see), ("job", &row.job.id)] {
            if !value.is_empty() {
                text.push_str(&format!("  {name:7} {}\n", one_line(value)));
            }
        }
    }
    for refused in &report.refused {
        text.push_str(&format!("\n{}\n  refused {}\n", refused.what, one_line(&refused.why)));
    }
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

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_fits_a_narrow_terminal_and_nothing_is_cut() {
        let words = "a text of many words ".repeat(12);
        let job = JobStatus {
            id: "job_01988f6e00007000800000000000abcd".into(),
            kind: "transform".into(),
            queue: "publish".into(),
            state: "succeeded".into(),
            reason: None,
            attempt: 1,
            waited_ms: 3_599_000,
            ran_ms: Some(3_599_000),
            result: None,
            error: None,
        };
        let row =
            Row { what: "transcode instagram_reel".into(), job, result: words.clone(), see: "/a/text.txt".into() };
        let report = Report {
            succeeded: true,
            rows: vec![row],
            problems: Vec::new(),
            refused: Vec::new(),
            posts: Some(1),
            addresses: Vec::new(),
        };
        let text = describe(&report);
        let table = text.split("\ntranscode").next().unwrap();
        assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
        for whole in [words.trim(), "/a/text.txt", "job_01988f6e00007000800000000000abcd"] {
            assert!(text.contains(whole), "{whole} is missing: {text}");
        }
    }
}
