//! Keys whose value is a list of tables: `[[http.keys]]` and its like.

use figment::value::{Dict, Value};

/// A list of tables, each by what reads one; `shape` is what it has to be.
pub(super) fn read_tables(
    value: &toml::Value,
    shape: &str,
    read: impl Fn(&toml::Table) -> Result<Dict, String>,
) -> Result<Value, String> {
    let mut tables = Vec::new();
    for (index, entry) in value.as_array().ok_or(shape)?.iter().enumerate() {
        let entry = entry.as_table().ok_or(shape)?;
        tables.push(read(entry).map_err(|rule| format!("entry {index} (from 0): {rule}"))?);
    }
    Ok(Value::from(tables))
}
