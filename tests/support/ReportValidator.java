import com.pixelmed.validate.DicomSRValidator;
import java.io.BufferedReader;
import java.io.InputStreamReader;

/**
 * PixelMed's SR validator as a process that stays: compiling its rules takes most of the time of a
 * call. Reads one file name a line; answers with its findings and a line that says that they ended.
 */
public class ReportValidator {
    public static void main(String[] arguments) throws Exception {
        DicomSRValidator validator = new DicomSRValidator();
        BufferedReader names = new BufferedReader(new InputStreamReader(System.in, "UTF-8"));
        for (String name = names.readLine(); name != null; name = names.readLine()) {
            try {
                System.out.println(validator.validate(name));
            } catch (Exception exception) {
                System.out.println("Error: the validator failed: " + exception);
            }
            System.out.println("== END");
            System.out.flush();
        }
    }
}
