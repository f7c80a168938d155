//! Each status, code and sentence that something wrong is answered with, in one table: lines of the configuration and the files that
//! they name ([`lines`], [`files`]), connections and certificates ([`connections`]), requests with their keys, signatures and rates
//! ([`requests`]), their heads ([`heads`]), and the bodies and events in them ([`bodies`], [`logs`]). A sentence that stands in the sources, and is in no row, fails
//! ([`written`]).

mod bodies;
mod connections;
mod files;
mod heads;
mod lines;
mod logs;
mod requests;
mod written;

/// Something wrong, and what is said of it.
struct Row<W> {
    wrong: W,
    /// Of an answer; or that the program ends with, or curl.
    status: u16,
    /// Of a wrong body or event, "" where there is none; or the configuration's key; or why a handshake failed, in the metric.
    code: &'static str,
    /// All of it; `{}` stands for what is another each time.
    sentence: String,
}

/// Whether this is the sentence, or one that differs in what is another each time.
fn is_said(sentence: &str, said: &str) -> bool {
    let parts: Vec<&str> = sentence.split("{}").collect();
    match &parts[..] {
        [whole] => *whole == said,
        parts => is_in_order(parts, said) && said.starts_with(parts[0]) && said.ends_with(parts[parts.len() - 1]),
    }
}

/// Whether these stand there, one behind the other.
fn is_in_order(parts: &[&str], text: &str) -> bool {
    let mut rest = Some(text);
    parts.iter().all(|part| {
        rest = rest.and_then(|rest| rest.split_once(*part)).map(|(_, behind)| behind);
        rest.is_some()
    })
}

/// What is not as its row has it; all of it is shown.
#[derive(Default)]
struct Differences(Vec<String>);

impl Differences {
    fn compare<W>(&mut self, row: &Row<W>, what: &str, said: (u16, &str, &str)) {
        let (status, code, sentence) = said;
        if (status, code) != (row.status, row.code) || !is_said(&row.sentence, sentence) {
            self.0.push(format!(
                "{what}\n  wanted {} {:?}: {}\n  heard  {status} {code:?}: {sentence}",
                row.status, row.code, row.sentence
            ));
        }
    }

    fn add(&mut self, difference: String) {
        self.0.push(difference);
    }

    #[track_caller]
    fn assert_none(self) {
        assert!(self.0.is_empty(), "{} rows differ:\n{}", self.0.len(), self.0.join("\n"));
    }
}
