//! Reads an answer's JSON while it is still being written, so that people see text grow and not JSON.
//!
//! For show only: it never decides anything. The whole answer is parsed and checked on its own.

use serde::Serialize;

/// A piece of one variant's text or title.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Piece {
    /// For which platform; `general` for none in particular.
    pub platform: String,
    pub field: &'static str,
    pub text: String,
}

/// Follows `{"x": {"text": ...}, "youtube": {"text": ..., "title": ...}}`.
#[derive(Debug, Default)]
pub struct PartialAnswer {
    stack: Vec<Level>,
    string: Option<StringState>,
    pieces: Vec<Piece>,
}

#[derive(Debug)]
enum Level {
    Object { key: String, at_value: bool },
    Array,
}

#[derive(Debug, Default)]
struct StringState {
    escape: Escape,
    /// The first half of a character that JSON writes as two.
    high: Option<u16>,
}

#[derive(Debug, Default)]
enum Escape {
    #[default]
    None,
    Started,
    Hex(String),
}

impl PartialAnswer {
    /// The pieces that `json`, the next part of the answer, adds.
    pub fn push(&mut self, json: &str) -> Vec<Piece> {
        for c in json.chars() {
            if self.string.is_some() {
                self.in_string(c);
            } else {
                self.between(c);
            }
        }
        std::mem::take(&mut self.pieces)
    }

    fn between(&mut self, c: char) {
        match c {
            '{' => self.stack.push(Level::Object { key: String::new(), at_value: false }),
            '[' => self.stack.push(Level::Array),
            '}' | ']' => {
                self.stack.pop();
            }
            ':' => {
                if let Some(Level::Object { at_value, .. }) = self.stack.last_mut() {
                    *at_value = true;
                }
            }
            ',' => {
                if let Some(Level::Object { key, at_value }) = self.stack.last_mut() {
                    key.clear();
                    *at_value = false;
                }
            }
            '"' if !self.stack.is_empty() => self.string = Some(StringState::default()),
            _ => {}
        }
    }

    fn in_string(&mut self, c: char) {
        let Some(state) = &mut self.string else { return };
        let written = match std::mem::take(&mut state.escape) {
            Escape::None if c == '"' => {
                self.string = None;
                return;
            }
            Escape::None if c == '\\' => {
                state.escape = Escape::Started;
                return;
            }
            Escape::None => Some(c),
            Escape::Started if c == 'u' => {
                state.escape = Escape::Hex(String::new());
                return;
            }
            Escape::Started => Some(match c {
                'n' => '\n',
                't' => '\t',
                'r' => '\r',
                'b' => '\u{8}',
                'f' => '\u{c}',
                other => other,
            }),
            Escape::Hex(mut digits) => {
                digits.push(c);
                if digits.len() < 4 {
                    state.escape = Escape::Hex(digits);
                    return;
                }
                let unit = u16::from_str_radix(&digits, 16).unwrap_or(0xfffd);
                match (state.high.take(), unit) {
                    (None, 0xd800..=0xdbff) => {
                        state.high = Some(unit);
                        None
                    }
                    (high, unit) => {
                        let units = high.into_iter().chain([unit]);
                        char::decode_utf16(units).next().map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
                    }
                }
            }
        };
        if let Some(c) = written {
            self.wrote(c);
        }
    }

    /// A character of a key or of a value.
    fn wrote(&mut self, c: char) {
        if let Some(Level::Object { key, at_value: false }) = self.stack.last_mut() {
            key.push(c);
            return;
        }
        let [Level::Object { key: platform, .. }, Level::Object { key, .. }] = &self.stack[..] else { return };
        let field = match key.as_str() {
            "text" => "text",
            "title" => "title",
            _ => return,
        };
        match self.pieces.last_mut() {
            Some(piece) if piece.platform == *platform && piece.field == field => piece.text.push(c),
            _ => self.pieces.push(Piece { platform: platform.clone(), field, text: c.into() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn text_appears_while_it_is_written_and_json_does_not() {
        let mut answer = PartialAnswer::default();
        assert_eq!(answer.push("```json\n{\"x\": {\"te"), []);
        let piece = |text: &str| Piece { platform: "x".into(), field: "text", text: text.into() };
        assert_eq!(answer.push("xt\": \"Hel"), [piece("Hel")]);
        assert_eq!(answer.push("lo \\\"you\\"), [piece("lo \"you")]);
        assert_eq!(answer.push("\" \\ud83c\\u"), [piece("\" ")]);
        assert_eq!(answer.push("df89\", \"tags\": [\"a\", {\"text\": \"b\"}]}, \"threads\""), [piece("🎉")]);
        assert_eq!(answer.push(": {\"text\": \"b\"}}")[0].platform, "threads");
    }

    proptest! {
        #[test]
        fn the_pieces_put_together_are_the_texts(
            texts in prop::collection::vec("\\PC{0,30}|[\"\\\\\n,:{}\\[\\]]{0,10}", 1..4),
            size in 1usize..9,
        ) {
            let variants: serde_json::Map<_, _> =
                texts.iter().enumerate().map(|(n, text)| (n.to_string(), json!({ "text": text }))).collect();
            let json = json!(variants).to_string();
            let mut answer = PartialAnswer::default();
            let mut read = vec![String::new(); texts.len()];
            let chars: Vec<_> = json.chars().collect();
            for part in chars.chunks(size) {
                for piece in answer.push(&part.iter().collect::<String>()) {
                    read[piece.platform.parse::<usize>().unwrap()].push_str(&piece.text);
                }
            }
            prop_assert_eq!(read, texts);
        }

        #[test]
        fn no_text_makes_it_fail(text in "\\PC{0,60}|[\"\\\\u0-9d{}\\[\\],:]{0,60}") {
            PartialAnswer::default().push(&text);
        }
    }
}
