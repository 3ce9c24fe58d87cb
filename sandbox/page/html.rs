//! The frame of every page: no outside assets, readable on a phone, light and dark by the reader's choice.

const STYLE: &str = include_str!("style.css");

pub fn document(title: &str, body: &str) -> String {
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\"><title>{} - sandbox</title>\
         <link rel=\"icon\" href=\"data:,\"><style>{STYLE}</style></head><body><main>{body}</main></body></html>",
        escaped(title)
    )
}

pub fn notice(title: &str, text: &str) -> String {
    let body = format!("<section class=\"card\"><h1>{}</h1><p>{}</p></section>", escaped(title), escaped(text));
    document(title, &body)
}

pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// `14:03:07` of a time in milliseconds, in UTC.
pub fn clock_time(time_ms: u64) -> String {
    crate::clock::iso(time_ms).get(11..19).map(String::from).unwrap_or_default()
}
