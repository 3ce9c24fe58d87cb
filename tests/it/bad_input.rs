//! What is wrong is named, whichever call it is sent to: a walk over every parameter and every body of the OpenAPI
//! document.

use reqwest::Method;
use serde_json::{Map, Value, json};

use crate::harness::Api;

/// Sends to each what it cannot be, and asserts that the answer says which it was and what to send instead.
pub async fn walk(api: &Api) {
    let (_, document) = api.get("/openapi.json").await;
    let (mut parameters, mut bodies) = (0, 0);
    for (path, item) in document["paths"].as_object().expect("it has paths") {
        if !path.starts_with("/api/") {
            continue;
        }
        for (method, operation) in item.as_object().expect("it has calls") {
            let method: Method = method.to_uppercase().parse().expect("a method");
            let call = Call { api, document: &document, method, path, operation };
            call.refuses_unknown_names().await;
            parameters += call.refuses_wrong_parameters().await;
            bodies += call.refuses_wrong_fields().await;
        }
    }
    assert!(parameters > 100 && bodies > 40, "{parameters} parameters and {bodies} fields were tried");
}

struct Call<'a> {
    api: &'a Api,
    document: &'a Value,
    method: Method,
    path: &'a str,
    operation: &'a Value,
}

impl Call<'_> {
    fn parameters(&self) -> Vec<&Value> {
        self.operation["parameters"].as_array().map(|all| all.iter().collect()).unwrap_or_default()
    }

    /// The path with something of the right form in the place of each parameter.
    fn well_formed(&self) -> String {
        self.filled(self.path)
    }

    fn filled(&self, path: &str) -> String {
        self.parameters().iter().filter(|it| it["in"] == "path").fold(path.to_owned(), |path, it| {
            let schema = self.resolved(&it["schema"]);
            let value = schema["example"].as_str().or_else(|| schema["enum"][0].as_str()).expect("an example");
            path.replace(&format!("{{{}}}", it["name"].as_str().expect("a name")), value)
        })
    }

    fn resolved<'a>(&'a self, schema: &'a Value) -> &'a Value {
        let part = schema["allOf"].get(0).unwrap_or(schema);
        let place = part["$ref"].as_str().and_then(|place| place.strip_prefix('#'));
        place.map_or(part, |place| self.document.pointer(place).expect("it is in the document"))
    }

    /// An error at this place has to be among those that the answer has.
    async fn refused(&self, path: &str, body: Option<Value>, field: &str, status: u16) {
        let sent = format!("{} {path} {body:?}", self.method);
        let (answered, problem) = self.api.call(self.method.clone(), path, body).await;
        assert_eq!(answered, status, "{sent}: {problem}");
        assert!(!problem.to_string().contains("occurred while parsing"), "{sent}: {problem}");
        let errors = problem["errors"].as_array().unwrap_or_else(|| panic!("{sent}: {problem}"));
        let error = errors.iter().find(|error| error["field"] == field);
        let error = error.unwrap_or_else(|| panic!("{sent} does not name {field}: {problem}"));
        for part in ["message", "remedy"] {
            assert!(error[part].as_str().is_some_and(|text| !text.is_empty()), "{sent}: {problem}");
        }
        assert!(!error["remedy"].as_str().expect("it was just seen").contains("See the"), "{sent}: {problem}");
    }

    async fn refuses_unknown_names(&self) {
        self.refused(&format!("{}?nonsense=1", self.well_formed()), None, "nonsense", 400).await;
        self.refused(&format!("{}?%00=1", self.well_formed()), None, "query", 400).await;
    }

    async fn refuses_wrong_parameters(&self) -> usize {
        let mut tried = 0;
        for parameter in self.parameters() {
            let name = parameter["name"].as_str().expect("a name");
            for wrong in wrong_texts(self.resolved(&parameter["schema"])) {
                let path = match parameter["in"].as_str().expect("a place") {
                    "query" => format!("{}?{name}={wrong}", self.well_formed()),
                    "path" => {
                        // The others are right, so that it is this one.
                        let marked = self.path.replace(&format!("{{{name}}}"), "\u{1}");
                        self.filled(&marked).replace('\u{1}', wrong)
                    }
                    _ => continue,
                };
                self.refused(&path, None, name, 400).await;
                tried += 1;
            }
        }
        tried
    }

    async fn refuses_wrong_fields(&self) -> usize {
        let Some(schema) = self.operation["requestBody"]["content"].get("application/json") else { return 0 };
        let mut tried = 0;
        for (name, field) in self.resolved(&schema["schema"])["properties"].as_object().unwrap_or(&Map::new()) {
            for wrong in wrong_values(self.resolved(field)) {
                self.refused(&self.well_formed(), Some(json!({ name: wrong })), name, 422).await;
                tried += 1;
            }
        }
        tried
    }
}

fn wrong_texts(schema: &Value) -> &'static [&'static str] {
    match (schema["type"].as_str(), schema["format"].as_str(), schema["enum"].is_array()) {
        (.., true) => &["no-such-value", "a%00b"],
        (Some("integer"), ..) => &["-1", "x", "1.5", "99999999999999999999", "a%00b"],
        (_, Some(_), _) => &["x", "1", "a%00b"],
        _ => &["a%00b"],
    }
}

fn wrong_values(schema: &Value) -> Vec<Value> {
    let unsigned = schema["format"].as_str().is_some_and(|format| format.starts_with("uint"));
    match (schema["type"].as_str(), schema["enum"].is_array()) {
        (_, true) => vec![json!("no-such-value"), json!(true), json!("a\u{0}b")],
        (Some("string"), _) => vec![json!(true), json!(7), json!([]), json!("a\u{0}b")],
        (Some("integer"), _) if unsigned => vec![json!(-1), json!("x"), json!(1.5)],
        (Some("integer"), _) => vec![json!("x"), json!(1.5)],
        (Some("boolean"), _) => vec![json!("yes"), json!(1)],
        (Some("array"), _) => vec![json!("x"), json!(1)],
        _ => vec![],
    }
}
