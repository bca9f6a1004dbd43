//! Whether an answer is what was expected.

use serde_json::{Number, Value};

use super::case::Compare;

/// Whether `expected` can be compared in this way; if not, what was expected of it.
pub(super) fn check(compare: Compare, expected: &Value) -> Result<(), String> {
    let word = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
    match (compare, expected) {
        (Compare::Json | Compare::JsonSubset, _) | (Compare::Exact, Value::String(_)) => Ok(()),
        (Compare::Exact, other) => Err(format!("expected: \"exact\" compares with a string, found {other}")),
        (Compare::Contains, one) if word(one) => Ok(()),
        (Compare::Contains, Value::Array(many)) if !many.is_empty() && many.iter().all(word) => Ok(()),
        (Compare::Contains, other) => {
            Err(format!("expected: \"contains\" looks for a string or a list of strings, none empty, found {other}"))
        }
    }
}

/// Whether `answer` is what was expected.
pub fn agrees(compare: Compare, expected: &Value, answer: &str) -> bool {
    match compare {
        Compare::Exact => expected.as_str().is_some_and(|text| text.trim() == answer.trim()),
        Compare::Json => serde_json::from_str(answer).is_ok_and(|value| equal(expected, &value)),
        Compare::JsonSubset => serde_json::from_str(answer).is_ok_and(|value| within(expected, &value)),
        Compare::Contains => match expected {
            Value::Array(many) => many.iter().all(|one| one.as_str().is_some_and(|part| contains(answer, part))),
            one => one.as_str().is_some_and(|part| contains(answer, part)),
        },
    }
}

fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => same(a, b),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| equal(a, b)))
        }
        (a, b) => a == b,
    }
}

/// Everything in `a` is in `b` too.
fn within(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => a.iter().all(|(key, a)| b.get(key).is_some_and(|b| within(a, b))),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| within(a, b)),
        (a, b) => equal(a, b),
    }
}

/// Large integers differ although their nearest floats may not.
fn same(a: &Number, b: &Number) -> bool {
    match (a.as_i128(), b.as_i128()) {
        (Some(a), Some(b)) => a == b,
        _ => a.as_f64() == b.as_f64(),
    }
}

/// `part` stands in `answer` by itself: not inside a longer word, and a number at its ends not inside a longer number
/// (`26.3` is not in `126.3`, `26.35` or `-26.3`; `26` is not in `26.3`, but it is in `It is 26.`).
fn contains(answer: &str, part: &str) -> bool {
    let joined = |c: char| c.is_alphanumeric() || c == '_';
    let point = |c: char| c == '.' || c == ',';
    let digit = |c: Option<char>| c.is_some_and(|c| c.is_ascii_digit());
    answer.match_indices(part).any(|(at, _)| {
        let mut before = answer[..at].chars().rev();
        let mut after = answer[at + part.len()..].chars();
        let free_before = match before.next() {
            None => true,
            Some(c) if point(c) => !digit(before.next()),
            Some(c) => !joined(c) && c != '-',
        };
        let free_after = match after.next() {
            None => true,
            Some(c) if point(c) => !digit(after.next()),
            Some(c) => !joined(c),
        };
        free_before && free_after
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn exact_ignores_white_space_around() {
        assert!(agrees(Compare::Exact, &json!("a b"), " a b\n"));
        assert!(!agrees(Compare::Exact, &json!("a b"), "a  b"));
        assert!(!agrees(Compare::Exact, &json!("a b"), "A b"));
    }

    #[test]
    fn json_is_compared_by_value() {
        let expected = json!({"a": 20, "b": [1.5, null, "x"], "c": {"d": true}});
        for (answer, whole, subset) in [
            (r#"{"c":{"d":true},"b":[1.50,null,"x"],"a":20.0}"#, true, true),
            (r#" {"a":20,"b":[1.5,null,"x"],"c":{"d":true,"e":1}} "#, false, true),
            (r#"{"a":20,"b":[1.5,null,"x"],"c":{"d":true},"z":0}"#, false, true),
            (r#"{"a":20,"b":[null,1.5,"x"],"c":{"d":true}}"#, false, false),
            (r#"{"a":20,"b":[1.5,null,"x",1],"c":{"d":true}}"#, false, false),
            (r#"{"a":"20","b":[1.5,null,"x"],"c":{"d":true}}"#, false, false),
            (r#"{"a":20,"b":[1.5,null,"x"]}"#, false, false),
            (r#"{"a":20,"b":[1.5,null,"x"],"c":{"d":true}} and more"#, false, false),
            ("", false, false),
        ] {
            assert_eq!(agrees(Compare::Json, &expected, answer), whole, "{answer}");
            assert_eq!(agrees(Compare::JsonSubset, &expected, answer), subset, "{answer}");
        }
        assert!(!agrees(Compare::Json, &json!(9_007_199_254_740_993_u64), "9007199254740992"));
    }

    #[test]
    fn contains_takes_whole_words_and_numbers() {
        for (part, answer, found) in [
            ("26.3", "It is 26.3 degrees.", true),
            ("26.3", "It is 26.3.", true),
            ("26.3", "26.3", true),
            ("26.3", "126.3", false),
            ("26.3", "26.35", false),
            ("26.3", "-26.3", false),
            ("26.3", "1.26.3", false),
            ("26", "26.3", false),
            ("26", "It is 26, not 27.", true),
            ("26", "3,26", false),
            ("-4", "It is -4 outside", true),
            ("yes", "Yes", false),
            ("yes", "yesterday, yes", true),
            ("open", "reopen", false),
            ("é", "caf é", true),
            ("é", "café", false),
        ] {
            assert_eq!(agrees(Compare::Contains, &json!(part), answer), found, "{part} in {answer}");
        }
        assert!(agrees(Compare::Contains, &json!(["no", "21"]), "no, it is 21"));
        assert!(!agrees(Compare::Contains, &json!(["no", "22"]), "no, it is 21"));
    }
}
