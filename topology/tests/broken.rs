use std::path::Path;
#[test]
fn dump() {
    let mut files: Vec<_> = std::fs::read_dir("tests/broken").unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    for file in files {
        let Err(problems) = topology::read(Path::new(&file)) else {
            println!("NONE {file:?}");
            continue;
        };
        println!("{}", problems.render(false));
        println!("{problems}");
    }
}
