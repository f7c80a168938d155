// Reads chunks from standard input, one a line, sends each, and prints the numbers of what was refused. There is no JSON in
// Java's own library: the events are cut out by what is known of them.

class Main {
    public static void main(String[] arguments) throws Exception {
        var lines = new java.io.BufferedReader(new java.io.InputStreamReader(System.in, "UTF-8"));
        for (String line; (line = lines.readLine()) != null; ) {
            var events = java.util.regex.Pattern.compile("\"event\": (\\{[^}]*\\})").matcher(line).results().map(found -> found.group(1)).toList();
            String told = Events.send(events.toString());
            System.out.println(java.util.regex.Pattern.compile("\"index\":(\\d+)").matcher(told).results()
                .map(found -> events.get(Integer.parseInt(found.group(1))).replaceAll(".*(\"number-\\d+\").*", "$1")).toList());
        }
    }
}
