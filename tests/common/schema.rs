//! Whether what the daemon says is what `docs/openapi.json` says that it says.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};

use jsonschema::Validator;
use serde_json::{Value, json};

/// The document.
pub static DOCUMENT: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("../../docs/openapi.json")).expect("JSON"));

/// What is wrong with `value` as `schema`, a part of the document.
fn validate(schema: &Value, value: &Value) -> Result<(), String> {
    static VALIDATORS: LazyLock<Mutex<HashMap<String, Arc<Validator>>>> = LazyLock::new(Mutex::default);
    let validator = {
        let mut validators = VALIDATORS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let new = || {
            // References lead to where they would in the document.
            let whole = json!({"allOf": [schema], "components": DOCUMENT["components"]});
            Arc::new(jsonschema::draft202012::new(&whole).expect("a schema"))
        };
        Arc::clone(validators.entry(schema.to_string()).or_insert_with(new))
    };
    let errors: Vec<String> = validator.iter_errors(value).map(|e| format!("{}: {e}", e.instance_path())).collect();
    if errors.is_empty() { Ok(()) } else { Err(format!("{}\nin {value}", errors.join("\n"))) }
}

/// The operation of the document behind `path`, which may have a query.
fn operation<'a>(method: &str, path: &str) -> Option<&'a Value> {
    let path = path.split('?').next()?;
    let paths = DOCUMENT["paths"].as_object()?;
    // A parameter is the rest of the path: some have slashes.
    let fits = |template: &str| {
        template.split_once('{').is_some_and(|(before, _)| path.strip_prefix(before).is_some_and(|id| !id.is_empty()))
    };
    let found = paths.get(path).or_else(|| paths.iter().find(|(template, _)| fits(template)).map(|(_, item)| item))?;
    found.get(method.to_lowercase())
}

/// Checks a response, and what was asked where it was answered well. A body that was cut off is checked as far as it goes.
pub fn check(method: &str, path: &str, request: &str, response: &super::Response) {
    let (status, body) = (response.status, &response.body);
    let wrong = |why: String| -> ! { panic!("{method} {path}, {status}, is not as docs/openapi.json says: {why}") };
    let must = |result: Result<(), String>| result.unwrap_or_else(|why| wrong(why));
    let read = |text: &str| serde_json::from_str(text).unwrap_or_else(|error| wrong(format!("{error}: {text}")));
    let kind = response.head.lines().find_map(|line| line.strip_prefix("content-type: ")).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default();
    let Some(operation) = operation(method, path) else {
        assert!(
            matches!(status, 400 | 404 | 405 | 503),
            "{method} {path} is not in docs/openapi.json, and gives {status}"
        );
        return must(validate(&json!({"$ref": "#/components/schemas/Error"}), &read(body)));
    };
    let documented = &operation["responses"][status.to_string()];
    let documented = match documented["$ref"].as_str() {
        Some(place) => DOCUMENT.pointer(place.trim_start_matches('#')).expect("what a reference leads to"),
        None => documented,
    };
    if documented.is_null() {
        wrong("there is no such status".into());
    }
    let Some(content) = documented["content"].get(kind) else { wrong(format!("there is no such type: {kind}")) };
    match kind {
        "application/json" => must(validate(&content["schema"], &read(body))),
        "text/event-stream" => {
            let mut events: Vec<&str> = body.split("\n\n").collect();
            let rest = events.pop().unwrap_or_default();
            assert!(rest.is_empty() || !response.complete, "a stream ends within an event: {rest}");
            for line in events.iter().flat_map(|event| event.lines()) {
                match line.split_once(": ") {
                    Some(("data", "[DONE]")) | Some(("" | "event", _)) => {}
                    Some(("data", data)) => must(validate(&content["x-event-data"], &read(data))),
                    _ => wrong(format!("a line of no kind: {line}")),
                }
            }
        }
        _ => must(validate(&content["schema"], &json!(body))),
    }
    if let Some(asked) = operation["requestBody"]["content"].get("application/json").filter(|_| status == 200) {
        must(validate(&asked["schema"], &read(request)));
    }
}
