//! A strict reader of JSON bodies (A2: `additionalProperties: false`): what is not asked for, or has the wrong
//! form, is reported, all of it at once, in shape (b).

use serde_json::{Map, Value, json};

use super::refusals;
use crate::exchange::{Answer, Call};

/// One JSON object being read, and everything wrong with it so far.
pub struct Reader {
    fields: Map<String, Value>,
    path: String,
    problems: Vec<(String, Value, String)>,
}

impl Reader {
    pub fn of(call: &Call) -> Result<Self, Answer> {
        if call.content_type() != "application/json" {
            return Err(refusals::invalid_one("", Value::Null, "The content type must be application/json."));
        }
        match call.json() {
            Some(Value::Object(fields)) => Ok(Self::root(fields)),
            Some(_) => Err(refusals::invalid_one("", Value::Null, "$: an object is expected")),
            None => Err(refusals::invalid_one("", Value::Null, "The request body is not valid JSON.")),
        }
    }

    fn root(fields: Map<String, Value>) -> Self {
        Self { fields, path: String::from("$"), problems: Vec::new() }
    }

    pub fn has(&self, name: &str) -> bool {
        self.fields.contains_key(name)
    }

    pub fn text(&mut self, name: &str) -> Option<String> {
        match self.fields.remove(name)? {
            Value::String(text) => Some(text),
            other => self.wrong(name, &other, "string"),
        }
    }

    pub fn flag(&mut self, name: &str) -> Option<bool> {
        match self.fields.remove(name)? {
            Value::Bool(flag) => Some(flag),
            other => self.wrong(name, &other, "boolean"),
        }
    }

    pub fn whole(&mut self, name: &str, least: u64, most: u64) -> Option<u64> {
        let value = self.fields.remove(name)?;
        let Some(number) = value.as_u64() else {
            return self.wrong(name, &value, "integer");
        };
        if !(least..=most).contains(&number) {
            self.problem(name, value, &format!("must be between {least} and {most}"));
            return None;
        }
        Some(number)
    }

    /// One of a list of words.
    pub fn word(&mut self, name: &str, words: &[&str]) -> Option<String> {
        let word = self.text(name)?;
        if words.contains(&word.as_str()) {
            return Some(word);
        }
        self.problem(name, json!(word), &format!("is not one of [{}]", words.join(",")));
        None
    }

    /// An id as X writes it: 1 to 19 digits (A2).
    pub fn id(&mut self, name: &str) -> Option<String> {
        let id = self.text(name)?;
        if is_id(&id) {
            return Some(id);
        }
        self.problem(name, json!(id), "does not match the regex pattern ^[0-9]{1,19}$");
        None
    }

    pub fn ids(&mut self, name: &str, least: usize, most: usize) -> Option<Vec<String>> {
        let ids = self.texts(name, least, most)?;
        if let Some(wrong) = ids.iter().find(|id| !is_id(id)) {
            self.problem(name, json!(wrong), "does not match the regex pattern ^[0-9]{1,19}$");
            return None;
        }
        Some(ids)
    }

    pub fn texts(&mut self, name: &str, least: usize, most: usize) -> Option<Vec<String>> {
        let value = self.fields.remove(name)?;
        let texts =
            value.as_array().and_then(|items| items.iter().map(|item| item.as_str().map(String::from)).collect());
        let Some(texts): Option<Vec<String>> = texts else {
            return self.wrong(name, &value, "array of strings");
        };
        if !(least..=most).contains(&texts.len()) {
            self.problem(name, value, &format!("must have from {least} to {most} items"));
            return None;
        }
        Some(texts)
    }

    /// Reads an object inside this one by the same rules.
    pub fn inside<T>(&mut self, name: &str, read: impl FnOnce(&mut Self) -> T) -> Option<T> {
        let value = self.fields.remove(name)?;
        let Value::Object(fields) = value else {
            return self.wrong(name, &value, "object");
        };
        let mut inner = Self { fields, path: format!("{}.{name}", self.path), problems: Vec::new() };
        let result = read(&mut inner);
        inner.refuse_the_rest();
        self.problems.append(&mut inner.problems);
        Some(result)
    }

    pub fn problem(&mut self, name: &str, value: Value, message: &str) {
        let path = format!("{}.{name}", self.path);
        let parameter = String::from(path.trim_start_matches("$."));
        let shown = match value {
            Value::String(text) => json!([text]),
            Value::Array(items) => Value::Array(items),
            other => json!([other.to_string()]),
        };
        self.problems.push((parameter, shown, format!("{path}: {message}")));
    }

    fn wrong<T>(&mut self, name: &str, value: &Value, expected: &str) -> Option<T> {
        let found = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        self.problem(name, value.clone(), &format!("{found} found, {expected} expected"));
        None
    }

    // A2: unknown fields are refused.
    fn refuse_the_rest(&mut self) {
        let unknown: Vec<(String, Value)> = std::mem::take(&mut self.fields).into_iter().collect();
        for (name, value) in unknown {
            let message = "is not defined in the schema and the schema does not allow additional properties";
            self.problem(&name, value, message);
        }
    }

    /// Done reading: everything left over is unknown, and any problem refuses the call.
    pub fn finish(mut self) -> Result<(), Answer> {
        self.refuse_the_rest();
        if self.problems.is_empty() { Ok(()) } else { Err(refusals::invalid(self.problems)) }
    }
}

pub fn is_id(text: &str) -> bool {
    (1..=19).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::Payload;

    #[test]
    fn all_that_is_wrong_is_told_at_once() {
        let body = json!({"text": 5, "media": {"media_ids": ["x"], "more": 1}, "extra": true});
        let Value::Object(fields) = body else { panic!("object") };
        let mut reader = Reader::root(fields);
        reader.text("text");
        reader.inside("media", |media| media.ids("media_ids", 1, 4));
        let Payload::Json(answer) = reader.finish().expect_err("refused").payload else { panic!("json") };
        let messages: Vec<&str> =
            answer["errors"].as_array().expect("errors").iter().filter_map(|e| e["message"].as_str()).collect();
        assert_eq!(messages.len(), 4, "{messages:?}");
        assert!(messages[0].starts_with("$.text: number found"));
        assert!(messages[2].starts_with("$.media.more: is not defined"));
        assert!(messages[3].starts_with("$.extra: is not defined"));
    }
}
