//! What an API answered, by its own log, and whether its document says that it may.
//!
//! Read from the log, because whoever asks does so in many ways: through the client here, one of their own, or bytes on a
//! connection. A program that logs less, or another route than those of the document, is not looked at.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};

use serde_json::Value;

use super::{App, wait_until};

const SOON: std::time::Duration = std::time::Duration::from_secs(10);

/// Method, path as in the document, status.
type Answer = (String, String, String);

#[derive(Debug, Default, Clone)]
pub struct Answers(BTreeSet<Answer>);

impl Answers {
    pub fn hear(&mut self, line: &str) {
        self.0.extend(answer_in(line));
    }

    pub fn holds(&self, method: &str, route: &str, status: &str) -> bool {
        self.0.contains(&(method.to_owned(), route.to_owned(), status.to_owned()))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn undocumented(&self) -> Vec<&Answer> {
        self.0.iter().filter(|answer| !is_documented(answer)).collect()
    }
}

/// Lines of text in development, of JSON elsewhere.
fn answer_in(line: &str) -> Option<Answer> {
    if !line.contains("answered") {
        return None;
    }
    let answer = match serde_json::from_str::<Value>(line) {
        Ok(line) if line["message"] == "answered" => {
            let text = |name: &str| line[name].as_str().map(str::to_owned);
            (text("method")?, text("route")?, line["status"].to_string())
        }
        Ok(_) => return None,
        Err(_) => {
            let (_, fields) = line.split_once(": answered ")?;
            let fields: BTreeMap<_, _> = fields.split(' ').filter_map(|field| field.split_once('=')).collect();
            let text = |name: &str| fields.get(name).map(|value| value.trim_matches('"').to_owned());
            (text("method")?, text("route")?, text("status")?)
        }
    };
    Some(answer).filter(|(_, route, _)| route.starts_with('/'))
}

fn is_documented((method, route, status): &Answer) -> bool {
    static DOCUMENT: LazyLock<Value> =
        LazyLock::new(|| serde_json::from_str(&multivio::api::openapi_json()).expect("the document is JSON"));
    DOCUMENT["paths"][route][method.to_lowercase()]["responses"].get(status).is_some()
}

#[test]
fn an_answer_is_read_from_both_kinds_of_lines_and_an_unknown_status_is_told() {
    let mut answers = Answers::default();
    let text = "2026-01-01T00:00:00Z DEBUG multivio::http::metrics: answered request_id=\"a\" method=GET";
    answers.hear(&format!("{text} route=\"/api/v1/jobs/{{id}}\" status=404 took_us=12"));
    answers.hear(&format!("{text} route=\"unmatched\" status=418 took_us=12"));
    answers.hear(r#"{"message":"answered","method":"POST","route":"/api/v1/posts","status":201,"took_us":9}"#);
    answers.hear("2026-01-01T00:00:00Z DEBUG multivio::outbound: answered by somebody else");
    assert_eq!((answers.0.len(), answers.undocumented().len()), (2, 0), "{answers:?}");
    answers.hear(&format!("{text} route=\"/api/v1/jobs\" status=409 took_us=12"));
    answers.hear(r#"{"message":"answered","method":"GET","route":"/health","status":404}"#);
    assert_eq!(answers.undocumented().len(), 2, "{answers:?}");
}

/// Else an answer that nobody hears would pass for one that is documented.
#[tokio::test]
async fn what_an_api_answers_is_heard_from_both_kinds_of_its_log() {
    for environment in ["development", "staging"] {
        let mut app = App::new().await;
        for (name, value) in [("ENVIRONMENT", environment), ("LOCAL_TOKENS", "on"), ("LOG_LEVEL", "debug")] {
            app.set(name, value);
        }
        let api = app.api().await;
        assert_eq!(api.get("/api/v1/jobs/no-id").await.0, 400, "{environment}");
        wait_until(SOON, environment, || async { api.program.answers().holds("GET", "/api/v1/jobs/{id}", "400") })
            .await;
    }
}
