//! Dashboards as Wavefront's dashboard API takes them (`POST /api/v2/dashboard`).

use serde_json::{Map, Value, json};

use crate::board::{Board, Choice, Kind, Panel, Row, Shown, Unit, Variable};

/// Charts of one row.
const CHARTS: usize = 3;

impl Unit {
    const fn words(self) -> &'static str {
        match self {
            Self::Number => "",
            Self::PerSecond => "1/s",
            Self::Requests => "requests/s",
            Self::Messages => "messages/s",
            Self::Bytes => "bytes",
            Self::BytesPerSecond => "bytes/s",
            Self::Milliseconds => "ms",
            Self::Seconds => "s",
            Self::Cores => "cores",
            Self::Share => "of 1",
        }
    }
}

/// Returns the file's text. Families that the observer names itself are left out.
pub(crate) fn dashboard(board: &Board) -> String {
    let parameters: Map<_, _> = board.variables.iter().enumerate().map(|(at, own)| parameter(at, own)).collect();
    let sections: Vec<_> = board.rows.iter().filter_map(section).collect();
    let dashboard = json!({
        "id": board.id,
        "url": board.id,
        "name": board.title,
        "description": board.description,
        "tags": {"customerTags": ["istio", "mesh-observer"]},
        "eventFilterType": "BYCHART",
        "defaultTimeWindow": "1h",
        "displayDescription": true,
        "displayQueryParameters": true,
        "displaySectionTableOfContents": true,
        "parameterDetails": parameters,
        "sections": sections,
    });
    format!("{dashboard:#}\n")
}

fn section(row: &Row) -> Option<Value> {
    let charts: Vec<_> = row.panels.iter().filter_map(chart).collect();
    let rows: Vec<_> = charts.chunks(CHARTS).map(|charts| json!({"charts": charts})).collect();
    (!rows.is_empty()).then(|| json!({"name": row.title, "rows": rows}))
}

fn chart(panel: &Panel) -> Option<Value> {
    let sources: Vec<_> = panel
        .targets
        .iter()
        .filter(|target| target.query.is_of_istio())
        .filter_map(|target| {
            let name = if target.name.is_empty() { panel.title } else { target.name.trim_end_matches(':') };
            Some(json!({"name": name, "query": target.query.ts()?, "queryType": "WQL", "querybuilderEnabled": false}))
        })
        .collect();
    let settings = match panel.kind {
        Kind::Number => json!({"type": "sparkline", "sparklineDisplayValueType": "VALUE"}),
        Kind::Areas => json!({"type": "stacked-area"}),
        Kind::Table => json!({"type": "table"}),
        Kind::Lines | Kind::Bars | Kind::Heatmap => json!({"type": "line"}),
    };
    (!sources.is_empty()).then(|| {
        json!({
            "name": panel.title,
            "description": panel.description(),
            "units": panel.unit.words(),
            "summarization": "MEAN",
            "base": 1,
            "chartSettings": settings,
            "sources": sources,
        })
    })
}

fn parameter(at: usize, variable: &Variable) -> (String, Value) {
    let Variable { name, label, choice } = variable;
    let mut json = match choice {
        Choice::Values(of, families, _, shown) => {
            let names: Vec<_> = families.iter().map(|family| format!("\"{}\"", family.documented_name)).collect();
            let filter = match shown {
                Shown::All => String::new(),
                Shown::Containing(text) => format!(", {of}=\"*{text}*\""),
            };
            json!({
                "parameterType": "DYNAMIC",
                "dynamicFieldType": "TAG_KEY",
                "tagKey": of,
                "queryValue": format!("ts({}{filter})", names.join(" or ")),
                "allowAll": true,
                "valuesToReadableStrings": {"Label": "*"},
                "defaultValue": "Label",
            })
        }
        Choice::One(values) => {
            // Despite the key's name, what is shown comes first.
            let texts: Map<_, _> = values.iter().map(|(text, value)| ((*text).to_owned(), json!(value))).collect();
            let order: Vec<_> = values.iter().map(|(text, _)| text).collect();
            json!({
                "parameterType": "LIST",
                "valuesToReadableStrings": texts,
                "valueOrdering": order,
                "defaultValue": values[0].0,
            })
        }
    };
    json["label"] = json!(label);
    json["hideFromView"] = json!(false);
    json["multivalue"] = json!(false);
    json["order"] = json!(at);
    ((*name).to_owned(), json)
}
