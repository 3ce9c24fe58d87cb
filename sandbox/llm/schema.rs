//! Fills a JSON schema (1.2, 1.8): every property, of the right type, with words from the task.

use serde_json::{Map, Value, json};

use super::{
    task::{Task, limit_in},
    writer,
};

const DEEPEST: usize = 24;

/// A value that is valid for the schema.
pub fn fill(schema: &Value, task: &Task) -> Value {
    Filler { root: schema, task }.value(schema, "text", task.limit, 0)
}

struct Filler<'a> {
    root: &'a Value,
    task: &'a Task,
}

impl Filler<'_> {
    fn value(&self, schema: &Value, name: &str, limit: Option<usize>, depth: usize) -> Value {
        if depth > DEEPEST {
            return Value::Null;
        }
        let limit = tighter(limit, schema);
        if let Some(constant) = schema.get("const") {
            return constant.clone();
        }
        if let Some(first) = schema["enum"].as_array().and_then(|values| values.iter().find(|value| !value.is_null())) {
            return first.clone();
        }
        if let Some(target) = schema["$ref"].as_str().and_then(|path| self.root.pointer(path.trim_start_matches('#'))) {
            return self.value(target, name, limit, depth + 1);
        }
        for choice in ["anyOf", "oneOf", "allOf"] {
            if let Some(first) = schema[choice].as_array().and_then(|all| all.iter().find(|one| one["type"] != "null"))
            {
                return self.value(first, name, limit, depth + 1);
            }
        }
        match type_of(schema) {
            "object" => self.object(schema, limit, depth),
            "array" => self.array(schema, name, limit, depth),
            "string" => Value::String(self.text(schema, name, limit)),
            "integer" => json!(self.number(schema, name)),
            "number" => json!(f64::from(u32::try_from(self.number(schema, name)).unwrap_or(0))),
            "boolean" => json!(true),
            _ => Value::Null,
        }
    }

    fn object(&self, schema: &Value, limit: Option<usize>, depth: usize) -> Value {
        let mut object = Map::new();
        for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
            object.insert(name.clone(), self.value(inner, name, limit, depth + 1));
        }
        Value::Object(object)
    }

    fn array(&self, schema: &Value, name: &str, limit: Option<usize>, depth: usize) -> Value {
        let items = &schema["items"];
        let least = schema["minItems"].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
        let most = schema["maxItems"].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
        let lower = name.to_lowercase();
        let limit_here = tighter(limit, items);
        let mut values: Vec<Value> = if type_of(items) != "string" {
            vec![self.value(items, name, limit, depth + 1)]
        } else if lower.contains("hashtag") || lower == "tags" {
            writer::hashtags(&self.task.content, 3, self.task.seed).into_iter().map(Value::String).collect()
        } else if ["parts", "posts", "tweets", "thread", "segments"].contains(&lower.as_str()) {
            writer::parts(&self.task.content, limit_here.unwrap_or(280)).into_iter().map(Value::String).collect()
        } else {
            vec![self.value(items, name, limit, depth + 1)]
        };
        values.truncate(most);
        while values.len() < least {
            values.push(self.value(items, name, limit, depth + 1));
        }
        Value::Array(values)
    }

    fn text(&self, schema: &Value, name: &str, limit: Option<usize>) -> String {
        let fixed = match schema["format"].as_str() {
            Some("date-time") => Some("2026-01-01T12:00:00Z"),
            Some("date") => Some("2026-01-01"),
            Some("time") => Some("12:00:00Z"),
            Some("email") => Some("someone@example.com"),
            Some("uuid") => Some("00000000-0000-4000-8000-000000000000"),
            Some("uri") => Some("https://example.com/"),
            _ => None,
        };
        if let Some(fixed) = fixed {
            return String::from(fixed);
        }
        let lower = name.to_lowercase();
        let task = Task { limit, ..self.task.clone() };
        let is = |words: &[&str]| words.iter().any(|word| lower.contains(word));
        if is(&["language", "locale"]) {
            String::from("en")
        } else if is(&["hashtag"]) {
            writer::hashtags(&task.content, 1, task.seed).concat()
        } else if is(&["title", "headline"]) {
            writer::fitted(&writer::first_words(&task.content, 8), limit.unwrap_or(100))
        } else if is(&["reason", "explanation", "note", "rationale"]) {
            writer::fitted("Kept the main point and left out what repeats it.", limit.unwrap_or(200))
        } else {
            writer::compose(&task)
        }
    }

    fn number(&self, schema: &Value, name: &str) -> i64 {
        let lower = name.to_lowercase();
        let counted = if lower.contains("char") || lower.contains("length") {
            i64::try_from(writer::compose(self.task).chars().count()).unwrap_or(i64::MAX)
        } else {
            1
        };
        let least = schema["minimum"].as_i64().unwrap_or(i64::MIN);
        let most = schema["maximum"].as_i64().unwrap_or(i64::MAX);
        counted.max(least).min(most.max(least))
    }
}

fn type_of(schema: &Value) -> &str {
    let stated = match &schema["type"] {
        Value::String(name) => Some(name.as_str()),
        Value::Array(names) => names.iter().filter_map(Value::as_str).find(|name| *name != "null"),
        _ => None,
    };
    stated.unwrap_or(if schema["properties"].is_object() {
        "object"
    } else if schema["items"].is_object() {
        "array"
    } else {
        "string"
    })
}

/// The smaller of what is known and what this schema says itself, in `maxLength` or in its description.
fn tighter(limit: Option<usize>, schema: &Value) -> Option<usize> {
    let stated = schema["maxLength"].as_u64().and_then(|most| usize::try_from(most).ok());
    let described = schema["description"].as_str().and_then(limit_in);
    [limit, stated, described].into_iter().flatten().min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task() -> Task {
        Task::of(&[
            json!({"role": "user", "content": "We repaired the harbour lighthouse this weekend and everybody helped to carry stones."}),
        ])
    }

    #[test]
    fn every_property_is_filled_with_its_type() {
        let schema = json!({
            "type": "object",
            "properties": {
                "variants": {"type": "object", "properties": {
                    "x": {"type": "string", "description": "At most 40 characters."},
                    "linkedin": {"$ref": "#/$defs/variant"},
                }},
                "hashtags": {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 3},
                "platform": {"enum": ["x", "linkedin"]},
                "note": {"type": ["string", "null"]},
                "score": {"type": "integer", "minimum": 3, "maximum": 5},
                "maybe": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
                "parts": {"type": "array", "items": {"type": "string", "maxLength": 30}},
            },
            "$defs": {"variant": {"type": "object", "properties": {"text": {"type": "string"}}}},
        });
        let value = fill(&schema, &task());
        let x = value["variants"]["x"].as_str().expect("text");
        assert!(!x.is_empty() && x.chars().count() <= 40, "{x}");
        assert!(value["variants"]["linkedin"]["text"].is_string());
        let tags = value["hashtags"].as_array().expect("list");
        assert!(
            (2..=3).contains(&tags.len())
                && tags.iter().all(|tag| tag.as_str().is_some_and(|tag| tag.starts_with('#')))
        );
        assert_eq!((&value["platform"], &value["score"], &value["maybe"]), (&json!("x"), &json!(3), &json!(true)));
        assert!(value["parts"].as_array().is_some_and(|parts| parts.len() > 2));
    }

    #[test]
    fn a_schema_that_refers_to_itself_ends() {
        let schema = json!({"$ref": "#/$defs/a", "$defs": {"a": {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}}}});
        assert!(fill(&schema, &task()).is_object());
    }
}
