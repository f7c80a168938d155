//! The answer to a query. Rows are written while they are read: as values they would take many times their text.

use std::{io::Write, sync::Arc};

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{MAX_BYTES, Place, groups::Group};
use crate::{
    measure::{Measures, More, Output, Plan, Shown},
    position::Timestamp,
    store::group,
};

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// The elements of a JSON array, with commas in between.
    #[default]
    Json,
    /// A JSON object a line.
    Ndjson,
    /// RFC 4180, with a header line.
    Csv,
}

/// What rows have, in this order.
#[derive(Debug)]
pub struct Columns {
    format: Format,
    fields: Vec<String>,
    outputs: Vec<Output>,
    /// Of each, its name as JSON with a colon.
    labels: Vec<Vec<u8>>,
    has_numbers: bool,
}

impl Columns {
    /// Of these fields of a group, and of what is measured.
    pub fn new(format: Format, fields: Vec<String>, plan: &Plan) -> Self {
        let outputs = plan.outputs().to_vec();
        let label = |output: &Output| {
            let mut label = Vec::new();
            json(&mut label, &Value::from(output.name.as_str()));
            label.push(b':');
            label
        };
        let labels = outputs.iter().map(label).collect();
        Self { format, fields, outputs, labels, has_numbers: plan.has_numbers() }
    }

    /// A group's values, as rows have them.
    pub fn group(&self, values: &[Value]) -> Vec<u8> {
        let mut written = Vec::new();
        let values = self.fields.iter().zip(values.iter().chain(std::iter::repeat(&Value::Null)));
        if self.format == Format::Csv {
            for (_, value) in values {
                match value {
                    Value::Null => {}
                    Value::String(text) if text.is_empty() => written.extend_from_slice(b"\"\""),
                    Value::String(text) => cell(&mut written, text),
                    other => cell(&mut written, &other.to_string()),
                }
                written.push(b',');
            }
            return written;
        }
        written.push(b'{');
        for (index, (field, value)) in values.enumerate() {
            if index > 0 {
                written.push(b',');
            }
            json(&mut written, &Value::from(field.as_str()));
            written.push(b':');
            json(&mut written, value);
        }
        written.push(b'}');
        written
    }

    /// Writes a row behind what is there.
    pub fn row(&self, out: &mut Vec<u8>, window_start: &str, group: &Group, measures: &Measures) {
        let none;
        let more = match &measures.more {
            Some(more) => Some(&**more),
            None if self.outputs.is_empty() => None,
            None => {
                none = More::default();
                Some(&none)
            }
        };
        match self.format {
            Format::Csv => self.csv(out, window_start, group, measures.count, more),
            Format::Json | Format::Ndjson => self.json(out, window_start, group, measures.count, more),
        }
    }

    fn json(&self, out: &mut Vec<u8>, window_start: &str, group: &Group, count: u64, more: Option<&More>) {
        out.extend_from_slice(b"{\"window_start\":\"");
        out.extend_from_slice(window_start.as_bytes());
        out.extend_from_slice(b"\",\"group\":");
        out.extend_from_slice(&group.written);
        number(out, ",\"count\":", count);
        if let Some(more) = more {
            out.extend_from_slice(b",\"measures\":{");
            let mut errors = Vec::new();
            for (index, (output, label)) in self.outputs.iter().zip(&self.labels).enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                out.extend_from_slice(label);
                let shown = more.show(output);
                write_shown(out, &shown);
                if let Shown::Top { error: error @ 1.., .. } = shown {
                    errors.push((output.name.as_str(), error));
                }
            }
            out.push(b'}');
            if !errors.is_empty() {
                out.extend_from_slice(b",\"errors\":");
                let errors = errors.into_iter().map(|(name, error)| (name.to_owned(), Value::from(error)));
                json(out, &Value::Object(errors.collect()));
            }
            if self.has_numbers {
                number(out, ",\"inexact\":", more.inexact);
            }
        }
        out.push(b'}');
        if self.format == Format::Ndjson {
            out.push(b'\n');
        }
    }

    fn csv(&self, out: &mut Vec<u8>, window_start: &str, group: &Group, count: u64, more: Option<&More>) {
        out.extend_from_slice(window_start.as_bytes());
        out.push(b',');
        out.extend_from_slice(&group.written);
        number(out, "", count);
        if let Some(more) = more {
            for output in &self.outputs {
                out.push(b',');
                match more.show(output) {
                    Shown::Nothing => {}
                    shown => {
                        let mut text = Vec::new();
                        write_shown(&mut text, &shown);
                        // It is JSON.
                        cell(out, &String::from_utf8_lossy(&text));
                    }
                }
            }
            if self.has_numbers {
                number(out, ",", more.inexact);
            }
        }
        out.extend_from_slice(b"\r\n");
    }

    /// What stands before the rows.
    fn head(&self) -> Vec<u8> {
        let mut head = Vec::new();
        if self.format == Format::Csv {
            let names = self.names();
            for (index, name) in names.iter().enumerate() {
                if index > 0 {
                    head.push(b',');
                }
                cell(&mut head, name);
            }
            head.extend_from_slice(b"\r\n");
        }
        head
    }

    /// The columns of a CSV. What would be called as another one is, is called `group.…` or `measures.…`.
    fn names(&self) -> Vec<String> {
        const FIXED: [&str; 3] = ["window_start", "count", "inexact"];
        let labels: Vec<&str> = self.outputs.iter().map(|output| output.name.as_str()).collect();
        let plain = self.fields.iter().map(String::as_str).chain(labels.iter().copied());
        let is_one = |name: &str| !FIXED.contains(&name) && plain.clone().filter(|other| *other == name).count() == 1;
        let mut names: Vec<String> = vec![FIXED[0].to_owned()];
        let named = |names: &[String], prefix: &str, name: &str| {
            let mut named = if is_one(name) { name.to_owned() } else { format!("{prefix}.{name}") };
            while FIXED.contains(&&*named) || names.contains(&named) {
                named = format!("{prefix}.{named}");
            }
            named
        };
        for field in &self.fields {
            names.push(named(&names, "group", field));
        }
        names.push(FIXED[1].to_owned());
        for label in &labels {
            names.push(named(&names, "measures", label));
        }
        if self.has_numbers {
            names.push(FIXED[2].to_owned());
        }
        names
    }
}

fn json(out: &mut Vec<u8>, value: &Value) {
    // A value with string keys always serialises, into memory.
    let _ = serde_json::to_writer(out, value);
}

fn number(out: &mut Vec<u8>, before: &str, number: u64) {
    out.extend_from_slice(before.as_bytes());
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// A measure as JSON.
fn write_shown(out: &mut Vec<u8>, shown: &Shown) {
    match shown {
        Shown::Nothing => out.extend_from_slice(b"null"),
        // All digits that it has.
        Shown::Number(sum) => _ = write!(out, "{sum}"),
        Shown::Count(count) => number(out, "", *count),
        Shown::Top { values, .. } => {
            out.push(b'[');
            for (index, item) in values.iter().enumerate() {
                out.extend_from_slice(if index > 0 { b",{\"value\":" } else { b"{\"value\":" });
                let is_plain_text = item.value.starts_with('"') && !item.value.contains('\\');
                if is_plain_text {
                    out.extend_from_slice(item.value.as_bytes());
                } else {
                    json(out, &group::value(&item.value));
                }
                number(out, ",\"count\":", item.count);
                out.push(b'}');
            }
            out.push(b']');
        }
    }
}

/// A cell of a CSV.
fn cell(out: &mut Vec<u8>, text: &str) {
    let is_plain = !text.contains(['"', ',', '\r', '\n']) && text.trim().len() == text.len();
    if is_plain {
        out.extend_from_slice(text.as_bytes());
        return;
    }
    out.push(b'"');
    out.extend_from_slice(text.replace('"', "\"\"").as_bytes());
    out.push(b'"');
}

/// Rows, in the order that was asked for.
#[derive(Debug, Default)]
pub struct Rows {
    head: Vec<u8>,
    body: Vec<u8>,
    count: usize,
    digest: [u8; 32],
    /// The last row's place, where there is more.
    next: Option<Place>,
}

impl Rows {
    pub fn new(columns: &Columns) -> Self {
        Self { head: columns.head(), ..Self::default() }
    }

    /// Adds a row, unless that is more than an answer takes.
    pub fn push(&mut self, columns: &Columns, limit: usize, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        let before = self.body.len();
        if self.count == limit {
            return false;
        }
        if before > 0 && columns.format == Format::Json {
            self.body.push(b',');
        }
        write(&mut self.body);
        // The first one is taken, so that any page gets on.
        if self.body.len() > MAX_BYTES && before > 0 {
            self.body.truncate(before);
            return false;
        }
        self.count += 1;
        true
    }

    pub fn count(&self) -> usize {
        self.count
    }

    /// They are all that there are, or all that the answer takes.
    pub fn end(mut self, next: Option<Place>) -> Self {
        let mut digest = Sha256::new();
        digest.update(&self.head);
        digest.update(&self.body);
        self.digest = digest.finalize().into();
        self.next = next;
        self
    }

    /// The last row's place, where there were more than the limit, or than an answer takes.
    pub fn next(&self) -> Option<&Place> {
        self.next.as_ref()
    }

    /// SHA-256 of what is written.
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// As the format has it.
    pub fn into_written(self) -> Vec<u8> {
        if self.head.is_empty() {
            return self.body;
        }
        [self.head, self.body].concat()
    }
}

/// When a step begins, as rows have it.
pub fn window_start(start: Timestamp) -> String {
    start.to_datetime().to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true)
}

/// A row's text.
pub fn written(columns: &Arc<Columns>, window_start: &str, group: &Group, measures: &Measures) -> Vec<u8> {
    let mut out = Vec::new();
    columns.row(&mut out, window_start, group, measures);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::AggregateConfig, store::query::groups::Groups};

    fn columns(format: Format, fields: &[&str], measures: &str) -> (Arc<Columns>, Plan) {
        let text = format!("name = \"a\"\nwindow = \"1m\"\ngroup_by = []\nmeasures = [{measures}]");
        let aggregate: AggregateConfig = toml::from_str(&text).unwrap();
        let plan = Plan::new(&aggregate);
        (Arc::new(Columns::new(format, fields.iter().map(|field| (*field).to_owned()).collect(), &plan)), plan)
    }

    fn group(columns: &Arc<Columns>, text: &str) -> Arc<Group> {
        let fields = columns.fields.len();
        let mut groups = Groups::new(fields, (0..fields).collect(), Vec::new(), columns.clone());
        let found = groups.find(text).unwrap();
        groups.get(found).clone()
    }

    #[test]
    fn columns_that_would_be_called_alike_are_told_apart() {
        for (fields, measures, expected) in [
            (&["type"][..], "\"count\"", "window_start,type,count"),
            (&["count", "window_start"], "", "window_start,group.count,group.window_start,count"),
            (
                &["x", "group.x"],
                "{ unique = \"u\", as = \"x\" }",
                "window_start,group.group.x,group.x,count,measures.x",
            ),
            (
                &["a,b"],
                "{ sum = \"n\", as = \"window_start\" }",
                "window_start,\"a,b\",count,measures.window_start,inexact",
            ),
        ] {
            let (columns, _) = columns(Format::Csv, fields, measures);
            let names = columns.names();
            let different: std::collections::BTreeSet<_> = names.iter().collect();
            assert_eq!(different.len(), names.len(), "{names:?}");
            if fields[0] != "x" {
                assert_eq!(String::from_utf8(columns.head()).unwrap(), format!("{expected}\r\n"));
            }
        }
    }

    #[test]
    fn cells_are_quoted_where_they_have_to_be() {
        let (columns, plan) = columns(Format::Csv, &["a", "b"], "{ top = \"ip\" }, { sum = \"n\" }");
        let mut measures = Measures::default();
        measures.add(&plan, |field| Some(if plan.fields()[field] == "ip" { "\"x\"" } else { "1.50" }));
        for (values, expected) in [
            ("[\"plain\",1.50]", "plain,1.5"),
            ("[\"\",null]", "\"\","),
            ("[\"a,\\\"b\\\"\\r\\n\",\" c\"]", "\"a,\"\"b\"\"\r\n\",\" c\""),
            ("[{\"x\": 1},true]", "\"{\"\"x\"\": 1}\",true"),
        ] {
            let written = written(&columns, "T", &group(&columns, values), &measures);
            let top = "\"[{\"\"value\"\":\"\"x\"\",\"\"count\"\":1}]\"";
            assert_eq!(String::from_utf8(written).unwrap(), format!("T,{expected},1,{top},1.5,0\r\n"));
        }
        // There was none of either.
        let none = written(&columns, "T", &group(&columns, "[1,2]"), &Measures::of_count(3));
        assert_eq!(String::from_utf8(none).unwrap(), "T,1,2,3,[],,0\r\n");
    }

    #[test]
    fn a_list_whose_counts_may_be_wrong_says_by_how_much() {
        let (columns, plan) = columns(Format::Json, &[], "{ top = \"ip\", k = 1, as = \"often\" }");
        let mut measures = Measures::default();
        for n in 0..2000 {
            let value = if n % 2 == 0 { "\"x\\\\\"".to_owned() } else { n.to_string() };
            measures.add(&plan, |_| Some(&value));
        }
        let written = written(&columns, "T", &group(&columns, "[]"), &measures);
        let row: Value = serde_json::from_slice(&written).unwrap();
        let (error, shown) = (row["errors"]["often"].as_u64().unwrap(), &row["measures"]["often"][0]);
        assert!(
            error > 0 && shown["value"] == "x\\" && shown["count"].as_u64().unwrap().abs_diff(1000) <= error,
            "{row}"
        );
        assert_eq!(row.get("inexact"), None);
    }

    #[test]
    fn an_answer_ends_at_the_limit_of_rows_or_bytes() {
        let (columns, _) = columns(Format::Json, &[], "");
        let mut rows = Rows::new(&columns);
        let push =
            |rows: &mut Rows, limit, size: usize| rows.push(&columns, limit, |out| out.resize(out.len() + size, b'x'));
        assert!(push(&mut rows, 1, 3) && !push(&mut rows, 1, 3));
        assert_eq!((rows.count(), rows.into_written()), (1, b"xxx".to_vec()));
        let mut rows = Rows::new(&columns);
        while push(&mut rows, usize::MAX, 1 << 20) {}
        assert_eq!((rows.count(), rows.into_written().len()), (31, 31 * ((1 << 20) + 1) - 1));
        // The first one is taken, whatever it is.
        assert!(push(&mut Rows::new(&columns), 1, MAX_BYTES + 1));
    }
}
