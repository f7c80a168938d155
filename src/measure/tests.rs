use super::{format::Damaged, *};

fn plan(measures: &str) -> Plan {
    let text = format!("name = \"a\"\nwindow = \"1m\"\ngroup_by = []\nmeasures = {measures}");
    Plan::new(&toml::from_str(&text).unwrap())
}

/// What comes of events whose fields, in the plan's order, are these.
fn measured(plan: &Plan, events: &[&[Option<&str>]]) -> Measures {
    let mut measures = Measures::default();
    events.iter().for_each(|fields| measures.add(plan, |field| fields[field]));
    measures
}

fn shown(plan: &Plan, measures: &Measures) -> Vec<(String, String)> {
    let more = measures.more.clone().unwrap_or_else(|| Box::new(More::new(plan)));
    let show = |output: &Output| match more.show(output) {
        Shown::Nothing => "-".to_owned(),
        Shown::Number(sum) => sum.to_string(),
        Shown::Count(count) => count.to_string(),
        Shown::Top { values, error } => {
            let values: Vec<_> = values.iter().map(|item| format!("{} {}", item.value, item.count)).collect();
            format!("{} ±{error}", values.join(", "))
        }
    };
    plan.outputs().iter().map(|output| (output.name.clone(), show(output))).collect()
}

const ALL: &str = r#"["count", { sum = "/amount" }, { min = "/amount" }, { max = "/amount", as = "most" }, { avg = "/amount" },
                     { unique = "user" }, { top = "ip", k = 2 }]"#;

#[test]
fn each_measure_shows_what_the_values_are() {
    let plan = plan(ALL);
    assert_eq!(plan.fields(), ["/amount", "ip", "user"]);
    let events: Vec<Vec<Option<&str>>> = [
        [Some("1.5"), Some("\"b\""), Some("\"u\"")],
        [Some("-2"), Some("\"a\""), Some("\"\\u0075\"")],
        [Some("1e40"), Some("\"a\""), Some("7")],
        [Some("\"3\""), None, Some("null")],
        [None, Some("null"), None],
    ]
    .map(|fields| fields.to_vec())
    .to_vec();
    let events: Vec<&[Option<&str>]> = events.iter().map(Vec::as_slice).collect();
    let measures = measured(&plan, &events);
    assert_eq!((measures.count, measures.more.as_ref().map(|more| more.inexact)), (5, Some(1)));
    let expected = [
        ("sum(/amount)", "-0.5"),
        ("min(/amount)", "-2"),
        ("most", "1.5"),
        ("avg(/amount)", "-0.25"),
        ("unique(user)", "2"),
        ("top(ip)", "\"a\" 2, \"b\" 1 ±0"),
    ];
    assert_eq!(shown(&plan, &measures), expected.map(|(name, text)| (name.to_owned(), text.to_owned())));
    // In parts, and through bytes.
    let mut parts = Measures::default();
    for part in events.chunks(2) {
        let part = measured(&plan, part);
        let more = More::from_bytes(&plan, &part.more.unwrap().to_bytes()).unwrap();
        parts.merge(Measures { count: part.count, more: Some(Box::new(more)) });
    }
    assert_eq!(parts, measures);
}

#[test]
fn a_measure_of_nothing_is_nothing() {
    let plan = plan(ALL);
    let expected = ["-", "-", "-", "-", "0", " ±0"];
    for measures in [Measures::default(), measured(&plan, &[&[None; 3]])] {
        let shown: Vec<_> = shown(&plan, &measures).into_iter().map(|(_, text)| text).collect();
        assert_eq!(shown, expected);
    }
    let only = self::plan("[\"count\"]");
    assert!(only.is_empty() && measured(&only, &[&[], &[]]) == Measures::of_count(2));
}

#[test]
fn the_same_measures_in_another_order_are_kept_in_the_same_bytes() {
    let (a, b) = (
        plan(ALL),
        plan(r#"[{ top = "ip", k = 2 }, { avg = "/amount", as = "x" }, { unique = "user" }, { min = "/amount" }]"#),
    );
    assert_eq!(a.fields(), b.fields());
    let event: &[Option<&str>] = &[Some("1"), Some("\"i\""), Some("\"u\"")];
    let bytes = measured(&a, &[event]).more.unwrap().to_bytes();
    assert_eq!(measured(&b, &[event]).more.unwrap().to_bytes(), bytes);
    assert_eq!(
        shown(&b, &Measures { count: 1, more: Some(Box::new(More::from_bytes(&b, &bytes).unwrap())) })[1].1,
        "1"
    );
}

#[test]
fn bytes_of_another_plan_are_told() {
    let (a, b) = (plan(ALL), plan("[{ sum = \"x\" }]"));
    let bytes = measured(&a, &[&[Some("1"), Some("\"i\""), Some("\"u\"")]]).more.unwrap().to_bytes();
    assert_eq!(More::from_bytes(&b, &bytes), Err(Damaged));
    assert_eq!(More::from_bytes(&a, &bytes[..bytes.len() - 1]), Err(Damaged));
    assert_eq!(More::from_bytes(&a, &[]), Err(Damaged));
    assert_eq!(More::from_bytes(&b, &[2, 0, 0]), Err(Damaged), "of a newer release");
}

#[test]
fn long_values_are_kept_as_their_hash_and_strings_have_one_form() {
    let plan = plan("[{ top = \"a\" }]");
    let long = format!("\"{}\"", "x".repeat(1000));
    let measures =
        measured(&plan, &[&[Some(&long)], &[Some(&long)], &[Some("\"\\u0061\\n\"")], &[Some("\"a\\u000a\"")]]);
    let text = &shown(&plan, &measures)[0].1;
    assert!(text.contains("\"sha256:") && text.contains("\"a\\n\" 2") && text.len() < 200, "{text}");
    assert!(measures.size() < 4096, "{}", measures.size());
}

#[test]
fn what_is_told_to_have_grown_is_what_it_takes() {
    let plan = plan(ALL);
    let (mut measures, mut grown) = (Measures::default(), 0);
    for n in 0..5_000 {
        let texts = [n.to_string(), format!("\"{n:030}\""), format!("\"user-{}\"", n % 3_000)];
        grown += measures.add_values(&plan, &|field: usize| Some(&*texts[field]));
        assert_eq!(usize::try_from(grown), Ok(measures.size()), "{n}");
    }
    assert!(measures.size() < 40_000, "{grown}");
}
