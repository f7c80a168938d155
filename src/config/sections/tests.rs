//! `config.toml` is what the declarations say.

use std::{fmt::Write as _, path::Path};

use super::*;
use crate::config::keys::flatten;

/// What stands above the first key.
fn head(file: &str) -> &str {
    file.split_once("\n\n").expect("a paragraph about the file").0
}

fn about(text: &mut String, lines: &[&str]) {
    lines.iter().for_each(|line| writeln!(text, "#{line}").unwrap());
}

fn mark(change: Change) -> &'static str {
    match change {
        Live => "  # live",
        LiveWithoutKafka => "  # live with the embedded queue",
        LiveOnceOn => "  # live, once TLS is on",
        Restart => "",
    }
}

/// Each section with its keys, then its tables of names that are not ours; the aggregates last.
fn written(head: &str) -> String {
    let values = flatten(&Config::default());
    let mut text = format!("{head}\n");
    for section in SECTIONS {
        text.push('\n');
        about(&mut text, section.about);
        if let Some(name) = section.prefix.strip_suffix('.') {
            writeln!(text, "[{name}]").unwrap();
        }
        for key in section.keys.iter().filter(|key| {
            !matches!(key.kind, Aggregates | Operators(_) | Options(_) | Senders(_) | Sources(_) | Types(_))
        }) {
            about(&mut text, key.about);
            let name = key.name.strip_prefix(section.prefix).unwrap();
            writeln!(text, "#{name} = {}{}", values[key.name], mark(key.change)).unwrap();
        }
        for key in section.keys {
            if let Options(examples) = key.kind {
                text.push('\n');
                about(&mut text, key.about);
                writeln!(text, "[{}]", key.name).unwrap();
                examples.iter().for_each(|example| writeln!(text, "# {example}").unwrap());
            }
            if let Operators(example) | Sources(example) | Senders(example) | Types(example) = key.kind {
                about(&mut text, key.about);
                writeln!(text, "# [[{}]]{}", key.name, mark(key.change)).unwrap();
                example.iter().for_each(|line| writeln!(text, "# {line}").unwrap());
            }
        }
    }
    let aggregates = Config::SECTION.keys.iter().find(|key| matches!(key.kind, Aggregates)).unwrap();
    text.push('\n');
    about(&mut text, aggregates.about);
    for aggregate in Config::default().aggregate {
        writeln!(text, "#[[{}]]", aggregates.name).unwrap();
        for line in toml::to_string(&aggregate).unwrap().lines() {
            writeln!(text, "#{line}").unwrap();
        }
    }
    text
}

#[test]
fn config_toml_is_written_from_the_declarations() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config.toml");
    let file = std::fs::read_to_string(&path).unwrap();
    let written = written(head(&file));
    if std::env::var_os("INGESTD_WRITE_CONFIG").is_some() {
        std::fs::write(&path, &written).unwrap();
    }
    let longest = written.lines().max_by_key(|line| line.chars().count()).unwrap();
    assert!(longest.chars().count() <= 130, "{longest}");
    assert_eq!(file, written, "INGESTD_WRITE_CONFIG=1 ./dev test unit config_toml_is_written writes it");
}
