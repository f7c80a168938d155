import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.regex.Pattern;
import org.apache.logging.log4j.LogManager;

class Main {
    public static void main(String[] arguments) throws Exception {
        var logger = LogManager.getLogger("shop");
        var lines = new BufferedReader(new InputStreamReader(System.in, "UTF-8"));
        var given = Pattern.compile("\"number\": \"([^\"]*)\", \"id\": \"([^\"]*)\", \"wrong\": (true|false)");
        for (String line; (line = lines.readLine()) != null; ) {
            for (var event : given.matcher(line).results().toList()) {
                logger.info("{} {}", event.group(1), event.group(3).equals("true") ? "x".repeat(12_000) : "");
            }
        }
        LogManager.shutdown();
    }
}
