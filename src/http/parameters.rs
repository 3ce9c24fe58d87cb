//! What the OpenAPI document says of each call's parameters and body, so that a refusal names what would be right. Also
//! refuses what no call takes: names that it does not have, and the NUL character, which Postgres does not store (E9).

use std::collections::HashMap;

use poem::http::Method;
use serde_json::Value;
use url::form_urlencoded;

use super::{FieldError, Problem};

/// Longest part of a wrong name that is shown to whoever sent it.
const LONGEST_NAME: usize = 64;

/// The calls of a document.
#[derive(Debug, Default)]
pub struct Parameters {
    /// By path with its `{parameters}`, then by method.
    calls: HashMap<String, Vec<(Method, Call)>>,
}

/// What one call takes.
#[derive(Debug, Default)]
pub struct Call {
    parameters: Vec<Parameter>,
    /// Content types of its body.
    bodies: Vec<String>,
}

#[derive(Debug)]
struct Parameter {
    name: String,
    in_query: bool,
    /// What is wrong with a value that does not parse, where the document can say so.
    complaint: Option<&'static str>,
    remedy: String,
}

impl Parameters {
    pub fn new(spec: &[u8]) -> Self {
        let spec: Value = serde_json::from_slice(spec).expect("the document was just written as JSON");
        let mut calls: HashMap<String, Vec<(Method, Call)>> = HashMap::new();
        for (path, item) in spec["paths"].as_object().into_iter().flatten() {
            for (method, operation) in item.as_object().into_iter().flatten() {
                let Ok(method) = method.to_uppercase().parse() else { continue };
                calls.entry(path.clone()).or_default().push((method, Call::new(operation, &spec)));
            }
        }
        Self { calls }
    }

    /// The call at a path that is written as in the document. What answers `GET` answers `HEAD`.
    pub fn call(&self, method: &Method, path: &str) -> Option<&Call> {
        let method = if *method == Method::HEAD { &Method::GET } else { method };
        self.calls.get(path)?.iter().find(|(of, _)| of == method).map(|(_, call)| call)
    }
}

impl Call {
    fn new(operation: &Value, spec: &Value) -> Self {
        let parameters = operation["parameters"].as_array().into_iter().flatten();
        let bodies = operation["requestBody"]["content"].as_object().into_iter().flatten();
        Self {
            parameters: parameters.filter_map(|parameter| Parameter::new(parameter, spec)).collect(),
            bodies: bodies.map(|(kind, _)| kind.split(';').next().unwrap_or_default().to_owned()).collect(),
        }
    }

    /// What a query holds that the call does not take.
    pub fn refuse(&self, query: &str) -> Option<Problem> {
        let mut errors = Vec::new();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let shown: String = name.chars().filter(|&c| c != '\0').take(LONGEST_NAME).collect();
            let shown = if shown.is_empty() { "query".to_owned() } else { shown };
            if !self.parameters.iter().any(|parameter| parameter.in_query && parameter.name == name) {
                errors.push(FieldError::new(shown, "is not a parameter of this call", self.names()));
            } else if value.contains('\0') {
                errors.push(FieldError::new(shown, "contains a NUL character", "Remove %00 from it"));
            }
        }
        let first = errors.first()?.clone();
        Some(Problem::bad_parameter(first.field, first.message, first.remedy).with_errors(errors))
    }

    /// A parameter that did not parse. `reason`: what its type said, for where the document says less.
    pub fn bad_parameter(&self, name: &str, reason: &str) -> Problem {
        let Some(parameter) = self.parameters.iter().find(|parameter| parameter.name == name) else {
            return bad_parameter(name, reason);
        };
        let complaint = match reason {
            MISSING => MISSING,
            reason => parameter.complaint.unwrap_or(reason),
        };
        Problem::bad_parameter(name, complaint, parameter.remedy.as_str())
    }

    /// What to send as `Content-Type`.
    pub fn content_type(&self) -> Option<String> {
        let kinds = self.bodies.iter().map(|kind| match kind.as_str() {
            "multipart/form-data" => "`Content-Type: multipart/form-data; boundary=...`".to_owned(),
            kind => format!("`Content-Type: {kind}`"),
        });
        let kinds: Vec<_> = kinds.collect();
        (!kinds.is_empty()).then(|| kinds.join(" or "))
    }

    fn names(&self) -> String {
        let names = self.parameters.iter().filter(|parameter| parameter.in_query).map(|parameter| &*parameter.name);
        match names.collect::<Vec<_>>().as_slice() {
            [] => "Remove it: this call takes none in its address".into(),
            names => format!("Remove it, or check its spelling: this call takes {}", names.join(", ")),
        }
    }
}

/// What [`super::translate`] calls a parameter that is not there.
pub const MISSING: &str = "is missing";

/// A parameter of a call that is not in the document.
pub fn bad_parameter(name: &str, reason: &str) -> Problem {
    Problem::bad_parameter(name, reason, "See the parameters of this call at /docs")
}

impl Parameter {
    fn new(parameter: &Value, spec: &Value) -> Option<Self> {
        let schema = resolved(&parameter["schema"], spec);
        let about = parameter["description"].as_str().map(|text| text.trim_end_matches('.'));
        let (complaint, wanted) = complaint_and_remedy(schema);
        let remedy = match about {
            // Only of a number the document says more in words than in its type.
            Some(about) if schema["type"] == "integer" => format!("{wanted} ({about})"),
            _ => wanted,
        };
        Some(Self {
            name: parameter["name"].as_str()?.to_owned(),
            in_query: parameter["in"] == "query",
            complaint,
            remedy,
        })
    }
}

/// A schema that stands elsewhere in the document, or here.
fn resolved<'a>(schema: &'a Value, spec: &'a Value) -> &'a Value {
    let part = schema["allOf"].get(0).unwrap_or(schema);
    let place = part["$ref"].as_str().and_then(|place| place.strip_prefix('#'));
    place.and_then(|place| spec.pointer(place)).unwrap_or(part)
}

fn complaint_and_remedy(schema: &Value) -> (Option<&'static str>, String) {
    if let Some(values) = schema["enum"].as_array() {
        let values: Vec<_> = values.iter().filter_map(Value::as_str).collect();
        return (Some("is not one of the values it can have"), format!("Send one of {}", values.join(", ")));
    }
    match (schema["type"].as_str(), schema["format"].as_str(), schema["example"].as_str()) {
        (Some("integer"), Some(format), _) if format.starts_with("uint") => {
            (Some("is not a whole number of 0 or more, or is too large"), "Send a whole number, 0 or more".into())
        }
        (Some("integer"), ..) => (Some("is not a whole number, or is too large"), "Send a whole number".into()),
        (Some("boolean"), ..) => (Some("is neither true nor false"), "Send true or false".into()),
        (_, _, Some(example)) => (None, format!("Send an id such as {example}")),
        _ => (None, "Send a text".into()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parameters() -> Parameters {
        let spec = json!({
            "paths": { "/things/{id}": { "get": {
                "parameters": [
                    { "name": "id", "in": "path", "schema": { "type": "string", "example": "thing_1" } },
                    { "name": "state", "in": "query", "schema": { "$ref": "#/components/schemas/State" } },
                    { "name": "wait", "in": "query", "schema": { "type": "integer", "format": "uint16" },
                      "description": "Seconds, 0 to 30" },
                ],
                "requestBody": { "content": { "application/json; charset=utf-8": {} } },
            } } },
            "components": { "schemas": { "State": { "type": "string", "enum": ["new", "old"] } } },
        });
        Parameters::new(spec.to_string().as_bytes())
    }

    #[test]
    fn a_value_that_does_not_fit_is_told_what_would() {
        let parameters = parameters();
        let call = parameters.call(&Method::HEAD, "/things/{id}").unwrap();
        let remedy = |name| call.bad_parameter(name, "is odd").document().errors[0].remedy.clone();
        assert_eq!(remedy("state"), "Send one of new, old");
        assert_eq!(remedy("wait"), "Send a whole number, 0 or more (Seconds, 0 to 30)");
        assert_eq!(remedy("id"), "Send an id such as thing_1");
        assert_eq!(call.content_type().unwrap(), "`Content-Type: application/json`");
    }

    #[test]
    fn a_query_holds_the_calls_own_names_and_no_nul() {
        let parameters = parameters();
        let call = parameters.call(&Method::GET, "/things/{id}").unwrap();
        assert_eq!(call.refuse("state=new&wait=1"), None);
        let fields = |query: &str| {
            let problem = call.refuse(query).unwrap();
            assert_eq!(problem.status(), 400);
            problem.document().errors.iter().map(|error| error.field.clone()).collect::<Vec<_>>()
        };
        assert_eq!(fields("stat=new"), ["stat"]);
        assert_eq!(fields("id=1&state=a%00b"), ["id", "state"]);
        assert!(call.refuse("x%00=1").unwrap().document().detail.contains("this call takes state, wait"));
        assert!(parameters.call(&Method::POST, "/things/{id}").is_none());
    }
}
