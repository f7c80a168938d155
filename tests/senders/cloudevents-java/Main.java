import io.cloudevents.core.builder.CloudEventBuilder;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.net.URI;
import java.util.regex.Pattern;

class Main {
    public static void main(String[] arguments) throws Exception {
        var lines = new BufferedReader(new InputStreamReader(System.in, "UTF-8"));
        var given = Pattern.compile("\"number\": \"([^\"]*)\", \"id\": \"([^\"]*)\", \"wrong\": (true|false)");
        for (String line; (line = lines.readLine()) != null; ) {
            for (var event : given.matcher(line).results().toList()) {
                var type = event.group(3).equals("true") ? "x".repeat(200) : "order.placed";
                var data = "{\"number\":\"" + event.group(1) + "\"}";
                try {
                    Events.send(CloudEventBuilder.v1().withType(type).withSource(URI.create("/shop")).withId(event.group(2))
                        .withData("application/json", data.getBytes("UTF-8")).build());
                } catch (IllegalArgumentException refused) {
                    System.out.println("[\"" + event.group(1) + "\"]");
                }
            }
        }
    }
}
