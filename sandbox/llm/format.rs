//! Checks `response_format` as each provider does (1.2).

use serde_json::{Map, Value};

use super::{Provider, refusals::Refusals};
use crate::exchange::Answer;

/// 1.2: `text`, `json_object` or `json_schema` with a name and a schema.
pub fn check(
    provider: Provider,
    refusals: &Refusals,
    body: &Map<String, Value>,
    messages: &[Value],
) -> Result<(), Answer> {
    let Some(format) = body.get("response_format") else {
        return Ok(());
    };
    let bad = |param: &str, message: &str| refusals.bad_field(param, "invalid_value", message);
    match format["type"].as_str() {
        Some("text") => Ok(()),
        Some("json_object") => {
            let says_json = messages.iter().any(|message| message.to_string().to_ascii_lowercase().contains("json"));
            if provider == Provider::OpenAi && !says_json {
                let message = "'messages' must contain the word 'json' in some form, to use 'response_format' of type 'json_object'.";
                return Err(bad("messages", message));
            }
            Ok(())
        }
        Some("json_schema") => {
            let described = &format["json_schema"];
            let name = described["name"].as_str().unwrap_or_default();
            let name_fits = (1..=64).contains(&name.len())
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
            if !name_fits {
                return Err(bad(
                    "response_format.json_schema.name",
                    "Invalid 'response_format.json_schema.name': 1 to 64 letters, digits, '_' and '-'.",
                ));
            }
            if !described["schema"].is_object() {
                return Err(bad(
                    "response_format.json_schema.schema",
                    "Missing required parameter: 'response_format.json_schema.schema'.",
                ));
            }
            if provider == Provider::OpenAi && described["strict"] == true {
                check_strict(refusals, name, &described["schema"], "")?;
            }
            Ok(())
        }
        _ => Err(bad(
            "response_format.type",
            "Invalid value for 'response_format.type': text, json_object or json_schema.",
        )),
    }
}

/// 1.2: strict mode wants every property required and nothing else allowed.
fn check_strict(refusals: &Refusals, name: &str, schema: &Value, at: &str) -> Result<(), Answer> {
    let bad = |what: &str| {
        let message = format!("Invalid schema for response_format '{name}': In context=({at}), {what}");
        refusals.bad_field("response_format", "invalid_json_schema", &message)
    };
    if let Some(properties) = schema["properties"].as_object() {
        if schema["additionalProperties"] != false {
            return Err(bad("'additionalProperties' is required to be supplied and to be false."));
        }
        let required =
            |key: &str| schema["required"].as_array().is_some_and(|list| list.iter().any(|known| known == key));
        if let Some(missing) = properties.keys().find(|key| !required(key)) {
            return Err(bad(&format!(
                "'required' is required to include every key in properties. Missing '{missing}'."
            )));
        }
        for (key, inner) in properties {
            check_strict(refusals, name, inner, &format!("{at}{key}."))?;
        }
    }
    if schema["items"].is_object() {
        check_strict(refusals, name, &schema["items"], &format!("{at}items."))?;
    }
    Ok(())
}
