//! Fills a JSON schema (1.2, 1.8): every property, of the right type, with words from the task.

use serde_json::{Map, Value, json};

use super::{
    task::{Task, limit_in},
    writer,
};

const DEEPEST: usize = 24;

/// A value that is valid for the schema.
pub fn fill(schema: &Value, task: &Task) -> Value {
    let place = Place { name: "text", about: "", limit: task.limit };
    Filler { root: schema, task }.value(schema, place, 0)
}

struct Filler<'a> {
    root: &'a Value,
    task: &'a Task,
}

/// Where in the answer a value stands.
#[derive(Clone, Copy)]
struct Place<'a> {
    /// The property's own name.
    name: &'a str,
    /// What it is written for, when the prompt has limits for things by name: a platform, say.
    about: &'a str,
    limit: Option<usize>,
}

impl Filler<'_> {
    fn value(&self, schema: &Value, place: Place<'_>, depth: usize) -> Value {
        if depth > DEEPEST {
            return Value::Null;
        }
        let place = Place { limit: tighter(place.limit, schema), ..place };
        if let Some(constant) = schema.get("const") {
            return constant.clone();
        }
        if let Some(words) = schema["enum"].as_array() {
            let about = words.iter().find(|word| *word == place.about);
            return about.or(words.iter().find(|word| !word.is_null())).cloned().unwrap_or_default();
        }
        if let Some(path) = schema["$ref"].as_str() {
            let target = self.root.pointer(path.trim_start_matches('#')).unwrap_or(&Value::Null);
            return self.value(target, place, depth + 1);
        }
        for choice in ["anyOf", "oneOf", "allOf"] {
            let all = schema[choice].as_array();
            if let Some(first) = all.and_then(|all| all.iter().find(|one| one["type"] != "null")) {
                return self.value(first, place, depth + 1);
            }
        }
        match type_of(schema) {
            "object" => self.object(schema, place, depth),
            "array" => self.array(schema, place, depth),
            "string" => self.text(schema, place).map_or(Value::Null, Value::String),
            "integer" => json!(self.number(schema, place.name)),
            "number" => json!(f64::from(u32::try_from(self.number(schema, place.name)).unwrap_or(0))),
            "boolean" => json!(true),
            _ => Value::Null,
        }
    }

    fn object(&self, schema: &Value, place: Place<'_>, depth: usize) -> Value {
        let mut object = Map::new();
        for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
            object.insert(name.clone(), self.value(inner, self.inside(place, name), depth + 1));
        }
        Value::Object(object)
    }

    /// A property with a limit of its own in the prompt starts a place of its own.
    fn inside<'a>(&'a self, place: Place<'a>, name: &'a str) -> Place<'a> {
        match self.task.limits.get(name) {
            Some(limits) => Place { name, about: name, limit: Some(limits.text) },
            None => Place { name, ..place },
        }
    }

    fn array(&self, schema: &Value, place: Place<'_>, depth: usize) -> Value {
        let items = &schema["items"];
        let least = schema["minItems"].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
        let most = schema["maxItems"].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
        let lower = place.name.to_lowercase();
        let task = self.task;
        let one = || self.value(items, place, depth + 1);
        let mut values: Vec<Value> = if type_of(items) != "string" {
            match kinds(items) {
                // One for each: "exactly one variant for each platform".
                Some(kinds) => {
                    kinds.iter().map(|kind| self.value(items, self.inside(place, kind), depth + 1)).collect()
                }
                None => vec![one()],
            }
        } else if lower.contains("hashtag") || lower == "tags" {
            writer::hashtags(&task.content, 3, task.seed).into_iter().map(Value::String).collect()
        } else if ["parts", "posts", "tweets", "thread", "segments"].contains(&lower.as_str()) {
            let limit = tighter(place.limit, items).unwrap_or(280);
            writer::parts(&task.content, limit).into_iter().map(Value::String).collect()
        } else {
            vec![one()]
        };
        values.truncate(most);
        while values.len() < least {
            values.push(one());
        }
        Value::Array(values)
    }

    /// `None` where a title may be left out and the place has no room for one.
    fn text(&self, schema: &Value, place: Place<'_>) -> Option<String> {
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
            return Some(String::from(fixed));
        }
        let lower = place.name.to_lowercase();
        let task = Task { limit: place.limit, ..self.task.clone() };
        let is = |words: &[&str]| words.iter().any(|word| lower.contains(word));
        if is(&["title", "headline"]) {
            let limit = task.limits.get(place.about).and_then(|limits| limits.title);
            let may_be_null = schema["type"].as_array().is_some_and(|types| types.iter().any(|t| t == "null"));
            if may_be_null && limit.is_none() && !task.limits.is_empty() {
                return None;
            }
            let limit = limit.or(place.limit).unwrap_or(100);
            return Some(writer::fitted(&writer::first_words(&task.content, 8), limit));
        }
        Some(if is(&["language", "locale"]) {
            String::from("en")
        } else if is(&["hashtag"]) {
            writer::hashtags(&task.content, 1, task.seed).concat()
        } else if is(&["reason", "explanation", "note", "rationale"]) {
            let words = "Kept the main point and left out what repeats it.";
            writer::fitted(words, place.limit.unwrap_or(200))
        } else {
            writer::compose(&task)
        })
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

/// The words of the property that tells the items of a list apart.
fn kinds(items: &Value) -> Option<Vec<String>> {
    let properties = items["properties"].as_object()?;
    let words = properties.values().filter_map(|inner| inner["enum"].as_array()).find(|words| words.len() > 1)?;
    Some(words.iter().filter_map(|word| word.as_str().map(String::from)).collect())
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
    fn a_list_by_platform_has_one_item_each_within_its_own_limit() {
        let task = Task::of(&[
            json!({"role": "system", "content": "Shorten.\n- x: at most 40 characters\n- linkedin: at most 60 characters\n- youtube: at most 300 characters; title at most 20 characters"}),
            json!({"role": "user", "content": task().content}),
        ]);
        let variant = |platform: Value| {
            json!({"type": "object", "properties": {
                "platform": platform, "text": {"type": "string"}, "title": {"type": ["string", "null"]},
            }})
        };
        let list = json!({"type": "object", "properties": {"variants": {"type": "array", "items": variant(json!({"enum": ["x", "linkedin", "youtube"]}))}}});
        let listed = fill(&list, &task)["variants"].clone();
        let keyed = json!({"type": "object", "properties": {
            "x": variant(json!({"const": "x"})), "linkedin": variant(json!({"const": "linkedin"})), "youtube": variant(json!({"const": "youtube"})),
        }});
        let keyed = fill(&keyed, &task);
        for (index, (platform, limit)) in [("x", 40), ("linkedin", 60), ("youtube", 300)].into_iter().enumerate() {
            for value in [&listed[index], &keyed[platform]] {
                assert_eq!(value["platform"], platform);
                let text = value["text"].as_str().expect("text");
                assert!(!text.is_empty() && text.chars().count() <= limit, "{text}");
                assert_eq!(
                    value["title"].as_str().is_some_and(|title| title.chars().count() <= 20),
                    platform == "youtube"
                );
            }
        }
    }

    #[test]
    fn a_schema_that_refers_to_itself_ends() {
        let schema = json!({"$ref": "#/$defs/a", "$defs": {"a": {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}}}});
        assert!(fill(&schema, &task()).is_object());
    }
}
