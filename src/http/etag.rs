//! Whether a client has the present state of a thing already (RFC 9110, 13.1.2).

/// Whether an `If-None-Match` names this tag: one or several, `W/` or not, or `*` for whatever there is.
pub fn knows(known: &str, tag: &str) -> bool {
    // No tag of ours has a comma in it.
    known.split(',').map(str::trim).any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_known_by_weak_comparison_in_a_list_and_by_a_star() {
        for known in ["\"a\"", "W/\"a\"", "\"b\", \"a\"", "\"b\",W/\"a\" ", "*", " * "] {
            assert!(knows(known, "\"a\""), "{known}");
        }
        for other in ["", "a", "\"b\"", "W/\"b\", \"c\"", "\"ab\"", "w/\"a\""] {
            assert!(!knows(other, "\"a\""), "{other}");
        }
    }
}
