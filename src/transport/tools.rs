//! Tools in OpenAI's shape: declarations, who chooses, calls and what they gave.

use serde_json::{Map, Value, json};

use super::fields::{Fields, wrong};
use crate::scheduler::backend::{Call, Format, InputError, MAX_NAME, Sampling, is_name};

/// Most tools of a request.
pub const MAX_TOOLS: usize = 64;

/// Whose shape tools have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// What a function is stands in its field `function`.
    Chat,
    /// It stands beside the type.
    Response,
}

impl Shape {
    fn function(self, tool: &Value) -> &Value {
        match self {
            Shape::Chat => &tool["function"],
            Shape::Response => tool,
        }
    }

    fn path(self, path: &str) -> String {
        match self {
            Shape::Chat => format!("{path}.function"),
            Shape::Response => path.to_owned(),
        }
    }
}

/// Takes `tools`, `tool_choice` and `parallel_tool_calls`; returns the declarations for the template and changes `sampling` so
/// that calls are read and, where a call is required, forced.
///
/// # Errors
///
/// Naming the field that is malformed or contradicts another.
pub fn take(fields: &mut Fields, sampling: &mut Sampling, shape: Shape) -> Result<Value, InputError> {
    // One call at most is forced, and more are never prevented: the field says nothing new.
    fields.flag("parallel_tool_calls")?;
    let tools = match fields.take("tools") {
        None => Vec::new(),
        Some(Value::Array(tools)) if tools.len() <= MAX_TOOLS => tools,
        Some(other) => return Err(wrong("tools", format_args!("an array of up to {MAX_TOOLS} tools"), &other)),
    };
    let tools = tools.into_iter().enumerate().map(|(at, tool)| declaration(&format!("tools[{at}]"), &tool, shape));
    let tools = tools.collect::<Result<Vec<Value>, InputError>>()?;
    let forced = match fields.take("tool_choice") {
        None => None,
        Some(Value::String(choice)) if choice == "auto" => None,
        Some(Value::String(choice)) if choice == "none" => return Ok(Value::Null),
        Some(Value::String(choice)) if choice == "required" => Some(tools.clone()),
        Some(choice) => {
            let name = &shape.function(&choice)["name"];
            let name = name.as_str().filter(|_| choice["type"] == "function");
            let Some(name) = name else {
                return Err(wrong("tool_choice", "none, auto, required or {\"type\":\"function\",…}", &choice));
            };
            let named: Vec<Value> = tools.iter().filter(|tool| tool["function"]["name"] == name).cloned().collect();
            if named.is_empty() {
                return Err(wrong(
                    &format!("{}.name", shape.path("tool_choice")),
                    "the name of one of tools",
                    &name.into(),
                ));
            }
            Some(named)
        }
    };
    if let Some(forced) = forced {
        if forced.is_empty() {
            return Err(InputError::new("tool_choice", "tool_choice: \"required\" needs tools"));
        }
        if sampling.format.is_some() {
            return Err(InputError::new(
                "tool_choice",
                "tool_choice: a required call leaves no place for another form of the answer",
            ));
        }
        (sampling.format, sampling.format_field) = (Some(Format::Call(forced)), "tools");
    }
    sampling.calls = !tools.is_empty();
    Ok(if tools.is_empty() { Value::Null } else { Value::Array(tools) })
}

/// What the template needs of a declaration, with nothing left undefined.
fn declaration(path: &str, tool: &Value, shape: Shape) -> Result<Value, InputError> {
    if tool["type"] != "function" {
        return Err(wrong(&format!("{path}.type"), "\"function\"", &tool["type"]));
    }
    let (tool, path) = (shape.function(tool), shape.path(path));
    let at = |field: &str| format!("{path}.{field}");
    let name = function_name(&at("name"), &tool["name"])?;
    let description = match &tool["description"] {
        Value::Null => "",
        Value::String(text) => text,
        other => return Err(wrong(&at("description"), "a string", other)),
    };
    let parameters = match &tool["parameters"] {
        Value::Null => Map::new(),
        Value::Object(schema) => schema.clone(),
        other => return Err(wrong(&at("parameters"), "a JSON schema", other)),
    };
    let mut function = json!({"name": name, "description": description});
    if !parameters.is_empty() {
        let kind = parameters.get("type").cloned().unwrap_or_else(|| "object".into());
        if kind != "object" {
            return Err(wrong(&at("parameters.type"), "\"object\"", &kind));
        }
        if let Some(other) = parameters.get("properties").filter(|properties| !properties.is_object()) {
            return Err(wrong(&at("parameters.properties"), "an object", other));
        }
        function["parameters"] = Value::Object(parameters);
        function["parameters"]["type"] = kind;
    }
    Ok(json!({"type": "function", "function": function}))
}

/// The name of a function.
///
/// # Errors
///
/// When it is none that every client and template knows.
pub fn function_name(path: &str, value: &Value) -> Result<String, InputError> {
    let expected = format!("1 to {MAX_NAME} letters, digits, _, - or .");
    value.as_str().filter(|name| is_name(name)).map(str::to_owned).ok_or_else(|| wrong(path, expected, value))
}

/// The `tool_calls` of an earlier answer, arguments as objects.
///
/// # Errors
///
/// Naming what is malformed.
pub fn earlier(path: &str, calls: Value) -> Result<Vec<Value>, InputError> {
    let Value::Array(calls) = calls else { return Err(wrong(path, "an array of calls", &calls)) };
    let call = |(n, call): (usize, &Value)| {
        let at = |field: &str| format!("{path}[{n}].{field}");
        let name = function_name(&at("function.name"), &call["function"]["name"])?;
        let arguments = arguments(&at("function.arguments"), &call["function"]["arguments"])?;
        let id = match &call["id"] {
            id @ Value::String(_) => id,
            other => return Err(wrong(&at("id"), "a string", other)),
        };
        Ok(json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}))
    };
    calls.iter().enumerate().map(call).collect()
}

/// The arguments of a call, as an object.
///
/// # Errors
///
/// When they are neither an object nor one in a string.
pub fn arguments(path: &str, value: &Value) -> Result<Value, InputError> {
    Ok(match value {
        Value::Null => json!({}),
        Value::Object(map) => json!(map),
        Value::String(text) if text.trim().is_empty() => json!({}),
        other => {
            let read = other.as_str().and_then(|text| serde_json::from_str::<Map<String, Value>>(text).ok());
            json!(read.ok_or_else(|| wrong(path, "a JSON object as a string", other))?)
        }
    })
}

/// Calls in OpenAI's shape; `first` calls of the same answer went before.
pub fn calls(id: &str, first: usize, calls: &[Call]) -> Value {
    let call = |(n, call): (usize, &Call)| {
        let arguments = Value::Object(call.arguments.clone()).to_string();
        json!({"id": format!("call_{id}_{n}"), "type": "function",
               "function": {"name": call.name, "arguments": arguments}})
    };
    (first..).zip(calls).map(call).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: Value) -> Result<(Value, Sampling), InputError> {
        let mut sampling = Sampling::default();
        take(&mut Fields::parse(json.to_string().as_bytes())?, &mut sampling, Shape::Chat)
            .map(|tools| (tools, sampling))
    }

    fn tool(name: &str) -> Value {
        json!({"type": "function", "function": {"name": name, "description": "d", "parameters": {
            "type": "object", "properties": {"a": {"type": "string"}}}}})
    }

    #[test]
    fn choices_declare_and_force() {
        let tools = json!([tool("f"), tool("g")]);
        let (declared, sampling) = read(json!({"tools": tools})).unwrap();
        assert_eq!((&declared, sampling.calls, sampling.format), (&tools, true, None));
        let (declared, sampling) = read(json!({"tools": tools, "tool_choice": "none"})).unwrap();
        assert_eq!((declared, sampling), (Value::Null, Sampling::default()));
        let (_, sampling) = read(json!({"tools": tools, "tool_choice": "required"})).unwrap();
        assert_eq!(sampling.format, Some(Format::Call(vec![tool("f"), tool("g")])));
        let named = json!({"type": "function", "function": {"name": "g"}});
        let (_, sampling) = read(json!({"tools": tools, "tool_choice": named})).unwrap();
        assert_eq!(sampling.format, Some(Format::Call(vec![tool("g")])));
        let (bare, _) = read(json!({"tools": [{"type": "function", "function": {"name": "f"}}]})).unwrap();
        assert_eq!(bare[0]["function"], json!({"name": "f", "description": ""}));
    }

    #[test]
    fn malformed_tools_are_refused_by_path() {
        let tools = json!([tool("f")]);
        let function = |function: Value| json!({"tools": [{"type": "function", "function": function}]});
        for (json, param) in [
            (json!({"tools": 1}), "tools"),
            (json!({"tools": vec![tool("f"); MAX_TOOLS + 1]}), "tools"),
            (json!({"tools": [1]}), "tools[0].type"),
            (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
            (function(json!({})), "tools[0].function.name"),
            (function(json!({"name": "a{b"})), "tools[0].function.name"),
            (function(json!({"name": "a", "description": 1})), "tools[0].function.description"),
            (function(json!({"name": "a", "parameters": []})), "tools[0].function.parameters"),
            (function(json!({"name": "a", "parameters": {"type": "string"}})), "tools[0].function.parameters.type"),
            (json!({"tools": tools, "tool_choice": "some"}), "tool_choice"),
            (json!({"tools": tools, "tool_choice": {"type": "function"}}), "tool_choice"),
            (
                json!({"tools": tools, "tool_choice": {"type": "function", "function": {"name": "x"}}}),
                "tool_choice.function.name",
            ),
            (json!({"tool_choice": "required"}), "tool_choice"),
            (json!({"tools": tools, "parallel_tool_calls": 1}), "parallel_tool_calls"),
        ] {
            assert_eq!(read(json.clone()).unwrap_err().param.as_deref(), Some(param), "{json}");
        }
    }

    #[test]
    fn arguments_of_earlier_calls_are_objects_again() {
        let with = |arguments: Value| json!([{"id": "c", "function": {"name": "f", "arguments": arguments}}]);
        assert_eq!(earlier("p", with(json!("{\"a\":[1]}"))).unwrap()[0]["function"]["arguments"], json!({"a": [1]}));
        assert_eq!(earlier("p", with(json!(""))).unwrap()[0]["function"]["arguments"], json!({}));
        for bad in [json!("{"), json!("[1]"), json!(7)] {
            assert_eq!(earlier("p", with(bad)).unwrap_err().param.as_deref(), Some("p[0].function.arguments"));
        }
        assert_eq!(earlier("p", json!([{"function": {"name": "f"}}])).unwrap_err().param.as_deref(), Some("p[0].id"));
    }

    #[test]
    fn calls_have_openais_shape() {
        let call = Call { name: "f".into(), arguments: Map::from_iter([("a".to_owned(), json!("é"))]) };
        let expected =
            json!([{"id": "call_x_1", "type": "function", "function": {"name": "f", "arguments": "{\"a\":\"é\"}"}}]);
        assert_eq!(calls("x", 1, &[call]), expected);
    }
}
