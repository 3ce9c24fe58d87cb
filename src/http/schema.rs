//! Finds out what is wrong with a JSON value that a type refused, by walking the type's schema.
//!
//! Only for error texts: the type itself decides what is accepted. A value never appears in an error, only its place.

use poem_openapi::registry::{MetaSchema, MetaSchemaRef, Registry};
use serde_json::{Map, Value};

use super::FieldError;

/// Appends what `schema` has against `value`, which stands at `path` ("" is the body itself).
pub fn explain(value: &Value, schema: &MetaSchemaRef, registry: &Registry, path: &str, errors: &mut Vec<FieldError>) {
    let schema = match schema {
        MetaSchemaRef::Inline(schema) => schema,
        MetaSchemaRef::Reference(name) => match registry.schemas.get(name) {
            Some(schema) => schema,
            None => return,
        },
    };
    for part in &schema.all_of {
        explain(value, part, registry, path, errors);
    }
    let mut object = |message: String| errors.push(FieldError::new(place(path), message, remedy(schema)));
    if !has_type(value, schema.ty) {
        return object(format!("is {}", article(value)));
    }
    if !schema.enum_items.is_empty() && !schema.enum_items.contains(value) {
        return object("is not one of the values it can have".into());
    }
    match value {
        Value::String(text) => explain_text(text, schema, object),
        Value::Number(number) => explain_number(number.as_f64().unwrap_or_default(), schema, object),
        Value::Array(items) => {
            let (least, most) = (schema.min_items.unwrap_or(0), schema.max_items.unwrap_or(usize::MAX));
            if !(least..=most).contains(&items.len()) {
                object(format!("has {} items", items.len()));
            }
            if let Some(item_schema) = &schema.items {
                for (index, item) in items.iter().enumerate() {
                    explain(item, item_schema, registry, &format!("{path}[{index}]"), errors);
                }
            }
        }
        Value::Object(fields) => explain_fields(fields, schema, registry, path, errors),
        Value::Null | Value::Bool(_) => {}
    }
}

fn explain_fields(
    fields: &Map<String, Value>,
    schema: &MetaSchema,
    registry: &Registry,
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    for (name, field_schema) in &schema.properties {
        let path = if path.is_empty() { (*name).to_owned() } else { format!("{path}.{name}") };
        match fields.get(*name) {
            None | Some(Value::Null) if schema.required.contains(name) => {
                errors.push(FieldError::new(path, "is missing", remedy_of(field_schema, registry)));
            }
            None | Some(Value::Null) => {}
            Some(value) => explain(value, field_schema, registry, &path, errors),
        }
    }
    if let Some(any) = &schema.additional_properties {
        for (name, value) in fields {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            explain(value, any, registry, &path, errors);
        }
    }
}

fn explain_text(text: &str, schema: &MetaSchema, mut object: impl FnMut(String)) {
    let length = text.chars().count();
    let (least, most) = (schema.min_length.unwrap_or(0), schema.max_length.unwrap_or(usize::MAX));
    if !(least..=most).contains(&length) {
        return object(if length == 0 { "is empty".into() } else { format!("has {length} characters") });
    }
    let well_formed = match schema.format {
        Some("date-time") => chrono::DateTime::parse_from_rfc3339(text).is_ok(),
        Some("uuid") => uuid::Uuid::try_parse(text).is_ok(),
        Some("uri" | "url") => url::Url::parse(text).is_ok(),
        Some(id) => id.strip_suffix("_id").is_none_or(|prefix| {
            let hex = text.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('_'));
            hex.is_some_and(|hex| hex.len() == 32 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
        }),
        None => true,
    };
    if !well_formed {
        object("has not the form it needs".into());
    }
}

fn explain_number(number: f64, schema: &MetaSchema, mut object: impl FnMut(String)) {
    let (least, most) = range(schema);
    let below =
        least.is_some_and(|least| number < least || (number <= least && schema.exclusive_minimum == Some(true)));
    let above = most.is_some_and(|most| number > most || (number >= most && schema.exclusive_maximum == Some(true)));
    if below || above {
        object(format!("is too {}", if below { "small" } else { "large" }));
    }
}

/// The least and the most that a number may be: what was said of it, or else what its type can hold.
fn range(schema: &MetaSchema) -> (Option<f64>, Option<f64>) {
    let (least, most) = match schema.format {
        Some("uint8") => (Some(0.0), Some(u8::MAX.into())),
        Some("uint16") => (Some(0.0), Some(u16::MAX.into())),
        Some("uint32") => (Some(0.0), Some(u32::MAX.into())),
        Some("uint64") => (Some(0.0), None),
        Some("int8") => (Some(i8::MIN.into()), Some(i8::MAX.into())),
        Some("int16") => (Some(i16::MIN.into()), Some(i16::MAX.into())),
        Some("int32") => (Some(i32::MIN.into()), Some(i32::MAX.into())),
        _ => (None, None),
    };
    (schema.minimum.or(least), schema.maximum.or(most))
}

/// The fields that a type with `deny_unknown_fields` complained about; it names one at a time.
pub fn find_unknown(message: &str, errors: &mut Vec<FieldError>) {
    if !message.contains("unknown field") {
        return;
    }
    if let Some(name) = field_in(message) {
        errors.push(unknown(name));
    }
}

/// The fields that an object has and its type does not, for a type that takes no others: all of them at once.
pub fn find_unknown_fields(value: &Value, schema: &MetaSchemaRef, registry: &Registry, errors: &mut Vec<FieldError>) {
    let schema = match schema {
        MetaSchemaRef::Inline(schema) => Some(&**schema),
        MetaSchemaRef::Reference(name) => registry.schemas.get(name),
    };
    let known = |name: &str| schema.is_none_or(|schema| schema.properties.iter().any(|(known, _)| *known == name));
    for name in value.as_object().into_iter().flat_map(Map::keys).filter(|name| !known(name)) {
        if errors.iter().all(|error| error.field != *name) {
            errors.push(unknown(name));
        }
    }
}

fn unknown(name: &str) -> FieldError {
    FieldError::new(name, "is not a field of this call", "Remove it, or check its spelling at /docs")
}

/// The name between the first pair of backticks.
pub fn field_in(message: &str) -> Option<&str> {
    message.split('`').nth(1)
}

/// Every text with a NUL character in it.
pub fn find_nul(value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let found = || FieldError::new(place(path), "contains a NUL character", "Remove \\u0000 from the text");
    match value {
        Value::String(text) if text.contains('\0') => errors.push(found()),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                find_nul(item, &format!("{path}[{index}]"), errors);
            }
        }
        Value::Object(fields) => {
            for (name, field) in fields {
                if name.contains('\0') {
                    errors.push(found());
                }
                let name = name.replace('\0', "");
                find_nul(field, &if path.is_empty() { name } else { format!("{path}.{name}") }, errors);
            }
        }
        _ => {}
    }
}

fn place(path: &str) -> &str {
    if path.is_empty() { "body" } else { path }
}

fn has_type(value: &Value, ty: &str) -> bool {
    match ty {
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => true,
    }
}

fn article(value: &Value) -> &'static str {
    match value {
        Value::Null => "null or missing",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a fraction",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn remedy_of(schema: &MetaSchemaRef, registry: &Registry) -> String {
    match schema {
        MetaSchemaRef::Inline(schema) => remedy(schema),
        MetaSchemaRef::Reference(name) => registry.schemas.get(name).map_or_else(|| "Send it".to_owned(), remedy),
    }
}

/// What to send instead, in a few words.
fn remedy(schema: &MetaSchema) -> String {
    if !schema.enum_items.is_empty() {
        let values: Vec<_> = schema
            .enum_items
            .iter()
            .map(|item| item.as_str().map_or_else(|| item.to_string(), str::to_owned))
            .collect();
        return format!("Send one of {}", values.join(", "));
    }
    match schema.ty {
        "string" => match (schema.format, &schema.example) {
            (Some("date-time"), _) => "Send an instant such as 2027-01-31T09:30:00Z".into(),
            (Some("uri" | "url"), _) => "Send a full address such as https://example.com/a".into(),
            (Some(_), Some(Value::String(example))) => format!("Send a string such as {example}"),
            _ => format!("Send a string{}", bounds(schema.min_length, schema.max_length, "characters")),
        },
        "integer" | "number" => {
            let kind = if schema.ty == "integer" { "a whole number" } else { "a number" };
            match range(schema) {
                (Some(least), Some(most)) => format!("Send {kind} from {least} to {most}"),
                (Some(least), None) => format!("Send {kind}, {least} or more"),
                (None, Some(most)) => format!("Send {kind}, {most} or less"),
                (None, None) => format!("Send {kind}"),
            }
        }
        "boolean" => "Send true or false".into(),
        "array" => format!("Send an array{}", bounds(schema.min_items, schema.max_items, "items")),
        "object" => {
            let names: Vec<_> = schema.properties.iter().map(|(name, _)| *name).collect();
            match names.as_slice() {
                [] => "Send an object".into(),
                names => format!("Send an object with {}", names.join(", ")),
            }
        }
        _ => "See the schema of this call at /docs".into(),
    }
}

fn bounds(least: Option<usize>, most: Option<usize>, of: &str) -> String {
    match (least, most) {
        (Some(least), Some(most)) => format!(" of {least} to {most} {of}"),
        (Some(least), None) => format!(" of {least} {of} or more"),
        (None, Some(most)) => format!(" of up to {most} {of}"),
        (None, None) => String::new(),
    }
}
