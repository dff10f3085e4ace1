//! Expressions of Grafana's dashboards.

pub mod picture;

use std::collections::BTreeMap;

use serde_json::Value;

/// Adds every expression below `value` with the titles above it.
pub fn collect_expressions(value: &Value, place: &str, found: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(fields) => {
            let title = fields.get("title").and_then(Value::as_str);
            let place = title.map_or_else(|| place.to_owned(), |title| format!("{place}: {title}"));
            if let Some(expression) = fields.get("expr").and_then(Value::as_str) {
                found.insert(expression.to_owned(), place.clone());
            }
            fields.values().for_each(|field| collect_expressions(field, &place, found));
        }
        Value::Array(values) => values.iter().for_each(|value| collect_expressions(value, place, found)),
        _ => {}
    }
}

/// Replaces every variable by what selects everything.
#[must_use]
pub fn select_everything(expression: &str) -> String {
    let mut parts = expression.split('$');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(part.len());
        text += ".*";
        text += &part[end..];
    }
    text
}
